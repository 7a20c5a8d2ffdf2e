// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {Ownable2StepUpgradeable} from "@openzeppelin/contracts-upgradeable/access/Ownable2StepUpgradeable.sol";
import {UUPSUpgradeable} from "@openzeppelin/contracts-upgradeable/proxy/utils/UUPSUpgradeable.sol";
import {ERC1967Utils} from "@openzeppelin/contracts/proxy/ERC1967/ERC1967Utils.sol";
import {ERC165Upgradeable} from "@openzeppelin/contracts-upgradeable/utils/introspection/ERC165Upgradeable.sol";
import {IGoverned} from "./interfaces/IGoverned.sol";

/// @title The owner's side of KmsAuth and AppAuth. Holds no storage of its own: slot 0 belongs to the heir.
abstract contract Governed is IGoverned, Ownable2StepUpgradeable, UUPSUpgradeable, ERC165Upgradeable {
    bytes32 private constant IMPLEMENTATION_UPGRADE = keccak256("implementation-upgrade");
    bytes32 private constant UPGRADES_DISABLED = keccak256("upgrades-disabled");

    /// @dev The implementation itself can never be initialised; only proxies of it can.
    constructor() {
        _disableInitializers();
    }

    /// @inheritdoc IGoverned
    function disableUpgrades() external onlyOwner {
        _disableUpgrades();
    }

    /// @inheritdoc IGoverned
    function upgradesDisabled() public view virtual returns (bool);

    /// @notice Always refuses.
    function renounceOwnership() public virtual override {
        revert RenounceRefused();
    }

    /// @dev The heir keeps the answer of `upgradesDisabled` where dstack has it.
    function _storeUpgradesDisabled() internal virtual;

    function _disableUpgrades() internal {
        _storeUpgradesDisabled();
        emit UpgradesDisabled();
        emit PolicyChanged(msg.sender, UPGRADES_DISABLED, 0, true);
    }

    /// @dev Owner only, until upgrades are disabled. Announces the new code, which OpenZeppelin then puts in place.
    function _authorizeUpgrade(address implementation) internal virtual override onlyOwner {
        require(!upgradesDisabled(), "Upgrades are permanently disabled");
        emit PolicyReplaced(IMPLEMENTATION_UPGRADE, _word(ERC1967Utils.getImplementation()), _word(implementation));
        emit PolicyChanged(msg.sender, IMPLEMENTATION_UPGRADE, _word(implementation), true);
    }

    function _refuseZero(bytes32 policy, bytes32 value) internal pure {
        require(value != 0, ZeroRefused(policy));
    }

    function _word(address value) internal pure returns (bytes32) {
        return bytes32(uint256(uint160(value)));
    }

    function _word(bool value) internal pure returns (bytes32) {
        return bytes32(uint256(value ? 1 : 0));
    }

    /// @dev Exactly `UpToDate`, as Intel spells it.
    function _isUpToDate(string calldata tcbStatus) internal pure returns (bool) {
        return keccak256(bytes(tcbStatus)) == keccak256("UpToDate");
    }
}
