// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

/// @title What KmsAuth and AppAuth have in common: an owner, and a trail of what the owner changed.
/// @dev The owner may change every policy of the contract and replace its code (UUPS). It cannot renounce: a contract
/// without an owner could never deny again. A new owner is named by the old one and must accept (two steps).
/// @dev Under an UpgradeOperator as owner, nothing here becomes allowed sooner than 48 hours after it was announced.
/// @dev The events rebuild every policy: a list from `PolicyChanged`, a single value from `PolicyReplaced`.
interface IGoverned {
    /// @notice Ownership cannot be given up, only handed to somebody who accepts it.
    error RenounceRefused();

    /// @notice Zero is never a hash, a device or a contract; `policy` names what it was meant for.
    error ZeroRefused(bytes32 policy);

    /// @notice `actor` made `value` allowed (`enabled`) or no longer allowed under `policy`.
    /// @dev `policy` is the keccak256 of its name, e.g. "compose-hash". An address stands in the low 20 bytes of
    /// `value`; for text or bytes it is their keccak256; for an on/off policy it is zero.
    event PolicyChanged(address indexed actor, bytes32 indexed policy, bytes32 indexed value, bool enabled);

    /// @notice The single value under `policy` was `previous` and is `current` from now on.
    /// @dev `policy` and both values are written as in `PolicyChanged`; a time is in Unix seconds, an on/off policy 0
    /// or 1.
    event PolicyReplaced(bytes32 policy, bytes32 previous, bytes32 current);

    /// @notice The code of this contract can never change again.
    event UpgradesDisabled();

    /// @notice Owner: give up changes of the code, for good.
    function disableUpgrades() external;

    /// @notice Whether changes of the code were given up.
    function upgradesDisabled() external view returns (bool);
}
