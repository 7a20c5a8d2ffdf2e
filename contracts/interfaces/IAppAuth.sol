// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {IGoverned} from "./IGoverned.sol";

/// @title The question every app contract answers. Wire-compatible with dstack; ERC-165 id 0x1e079198.
interface IAppAuth {
    /// @notice What a verified machine says about itself; the order of the members is part of the ABI.
    struct AppBootInfo {
        address appId;
        bytes32 composeHash;
        address instanceId;
        bytes32 deviceId;
        bytes32 mrAggregated;
        bytes32 mrSystem;
        bytes32 osImageHash;
        string tcbStatus;
        string[] advisoryIds;
    }

    /// @notice Whether a machine with this boot info may have the app's keys, and if not, why.
    /// @dev The caller must have verified the boot info against a quote; a contract cannot.
    function isAppAllowed(AppBootInfo calldata bootInfo) external view returns (bool isAllowed, string memory reason);
}

/// @title The four list operations that upstream's tools look for. ERC-165 id 0x8fd37527.
interface IAppAuthBasicManagement {
    /// @notice From now on `composeHash` is an allowed configuration of this app.
    event ComposeHashAdded(bytes32 composeHash);

    /// @notice From now on `composeHash` is no allowed configuration of this app.
    event ComposeHashRemoved(bytes32 composeHash);

    /// @notice From now on this app may run on the machine `deviceId`.
    event DeviceAdded(bytes32 deviceId);

    /// @notice From now on this app may not run on the machine `deviceId`, unless every device is allowed.
    event DeviceRemoved(bytes32 deviceId);

    /// @notice Owner: allow a configuration.
    function addComposeHash(bytes32 composeHash) external;

    /// @notice Owner: forbid a configuration.
    /// @dev Warning: keys already released are not taken back.
    function removeComposeHash(bytes32 composeHash) external;

    /// @notice Owner: allow a machine.
    function addDevice(bytes32 deviceId) external;

    /// @notice Owner: forbid a machine.
    function removeDevice(bytes32 deviceId) external;
}

/// @title Which configurations, and on which machines, may have the keys of one app. The role of dstack's DstackApp.
/// @dev Gates of `isAppAllowed`, in this order: the TCB if it must be up to date, the compose hash, the device.
/// @dev The owner may change every gate and, until upgrades are disabled, the code. Nobody else may change anything.
interface IAppAuthPolicy is IGoverned, IAppAuth, IAppAuthBasicManagement {
    /// @notice The code of this contract can never change again.
    event UpgradesDisabled();

    /// @notice Every device is allowed, or only listed ones.
    event AllowAnyDeviceSet(bool allowAny);

    /// @notice Only machines whose TCB status is `UpToDate` are allowed, or any status is.
    event RequireTcbUpToDateSet(bool requireUpToDate);

    /// @notice Sets up a new proxy, once; the form of contract version 1, which tolerates any TCB status.
    /// @param initialOwner Who governs this app; not zero.
    /// @param disableUpgrades_ Give up code changes from the start.
    /// @param allowAnyDevice_ Let the app run on every device.
    /// @param deviceId First allowed device; zero for none.
    /// @param composeHash First allowed configuration; zero for none.
    function initialize(
        address initialOwner,
        bool disableUpgrades_,
        bool allowAnyDevice_,
        bytes32 deviceId,
        bytes32 composeHash
    ) external;

    /// @notice Sets up a new proxy, once; `requireTcbUpToDate_` refuses machines with an outdated TCB.
    function initialize(
        address initialOwner,
        bool disableUpgrades_,
        bool requireTcbUpToDate_,
        bool allowAnyDevice_,
        bytes32 deviceId,
        bytes32 composeHash
    ) external;

    /// @notice Owner: allow every device, or only listed ones.
    function setAllowAnyDevice(bool allowAny) external;

    /// @notice Owner: refuse machines whose TCB status is not `UpToDate`, or tolerate them.
    function setRequireTcbUpToDate(bool requireUpToDate) external;

    /// @notice Owner: give up changes of the code, for good.
    function disableUpgrades() external;

    /// @notice Version of this contract's ABI.
    function version() external pure returns (uint256);

    /// @notice Whether this configuration is allowed.
    function allowedComposeHashes(bytes32 composeHash) external view returns (bool);

    /// @notice Whether this device is listed.
    function allowedDeviceIds(bytes32 deviceId) external view returns (bool);

    /// @notice Whether unlisted devices are allowed too.
    function allowAnyDevice() external view returns (bool);

    /// @notice Whether only the TCB status `UpToDate` is allowed.
    function requireTcbUpToDate() external view returns (bool);
}
