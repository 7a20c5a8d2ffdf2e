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
    /// @dev Every version that has it so far is over, too.
    function removeComposeHash(bytes32 composeHash) external;

    /// @notice Owner: allow a machine.
    function addDevice(bytes32 deviceId) external;

    /// @notice Owner: forbid a machine.
    function removeDevice(bytes32 deviceId) external;
}

/// @title Which configurations, and on which machines, may have the keys of one app. The role of dstack's DstackApp.
/// @dev Gates of `isAppAllowed`, in this order: the TCB if it must be up to date, the configuration, the device.
/// @dev A configuration is allowed in one of two ways: by its compose hash alone, on any OS image that KmsAuth allows,
/// as in dstack; or by a version, on the OS images of that version, until the version ends. Where several versions have
/// the same compose hash and OS image, the newest decides.
/// @dev The owner may change every gate and, until upgrades are disabled, the code. Nobody else may change anything.
/// It cannot lower a version number, lengthen the life of an ended version, or grant anything after `freezeForGood`.
interface IAppAuthPolicy is IGoverned, IAppAuth, IAppAuthBasicManagement {
    /// @notice What a machine measures before the app starts, for one shape of machine.
    /// @dev Each is 48 bytes; `rtmr3` may be empty, for it follows from the instance where an app has instance ids.
    struct Registers {
        bytes mrtd;
        bytes rtmr0;
        bytes rtmr1;
        bytes rtmr2;
        bytes rtmr3;
    }

    /// @notice One version of the app: what may run, and what it replaces.
    /// @param number Above the number of every earlier version, and below 2^48.
    /// @param composeHash The configuration; not zero.
    /// @param osImageHashes 1 to 8 OS images that it may run on; none zero. KmsAuth must allow them too.
    /// @param registers Up to 8 sets that `areRegistersAllowed` knows; none if that is not to be asked.
    /// @param supersedes Number of the version that this one replaces; zero for none.
    /// @param sunset When that one ends by itself, in Unix seconds; zero if and only if it replaces none.
    /// @param isRollback Whether everything in it was in earlier versions already.
    struct Version {
        uint64 number;
        bytes32 composeHash;
        bytes32[] osImageHashes;
        Registers[] registers;
        uint64 supersedes;
        uint64 sunset;
        bool isRollback;
    }

    /// @notice What is kept of a version. Its content is in `VersionAdded`.
    /// @param addedAt When it became allowed; zero if there is no such version.
    /// @param endsAt From then on it is not allowed; zero for never.
    /// @param previous Number of the version added before this one; zero for the first.
    /// @param isRollback As it was declared.
    struct VersionRecord {
        uint48 addedAt;
        uint64 endsAt;
        uint64 previous;
        bool isRollback;
    }

    /// @notice `frozenForGood` is on: nothing can be granted any more.
    error FrozenForGood();

    /// @notice The number is not above that of the newest version.
    error NumberNotRising(uint64 got, uint64 newest);

    /// @notice The number is above the highest that there can be.
    error NumberTooHigh(uint64 got, uint64 highest);

    /// @notice There is no version of this number.
    error VersionUnknown(uint64 number);

    /// @notice The version ended; only a new version can allow its content again.
    error VersionEnded(uint64 number, uint64 endedAt);

    /// @notice A version supersedes none and has a sunset, or the other way round, or supersedes itself or a later one.
    error SunsetMisplaced(uint64 number, uint64 supersedes, uint64 sunset);

    /// @notice The new end is not on the side of the old one that the call is for. Zero stands for never.
    error SunsetNotMoved(uint64 number, uint64 got, uint64 current);

    /// @notice A version lists too few or too many of something; `policy` names it.
    error CountOutOfRange(bytes32 policy, uint256 got, uint256 fewest, uint256 most);

    /// @notice A register is not 48 bytes long.
    error RegisterLength(uint256 got);

    /// @notice A version that brings something new is marked as a rollback, or one that does not is not marked.
    error RollbackMisstated(uint64 number, bool stated);

    /// @notice The time lies in the past, or further ahead than allowed.
    error TimeOutOfRange(uint256 got, uint256 earliest, uint256 latest);

    /// @notice From now on `version` is allowed.
    event VersionAdded(Version version);

    /// @notice Version `number` ends at `endsAt`, no longer at `previous`; zero stands for never.
    event VersionEndSet(uint64 number, uint64 previous, uint64 endsAt);

    /// @notice Every version up to `newest` that has this compose hash is over, whatever its end was.
    event VersionsRemoved(bytes32 composeHash, uint64 newest);

    /// @notice Machines of any TCB status are tolerated before `until`; not at all any more if that is zero.
    event OutdatedTcbToleratedUntil(uint64 until);

    /// @notice Nothing can be granted any more.
    event AppFrozenForGood();

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

    /// @notice Owner: refuse machines whose TCB status is not `UpToDate`, or tolerate them without an end.
    /// @dev Either way an end set by `tolerateOutdatedTcb` is void.
    function setRequireTcbUpToDate(bool requireUpToDate) external;

    /// @notice Owner: tolerate any TCB status before `until`, at most 90 days ahead, and none but `UpToDate` from then on.
    function tolerateOutdatedTcb(uint64 until) external;

    /// @notice Owner: allow a version. The one it supersedes ends at `sunset`, or earlier if it would have anyway.
    function addVersion(Version calldata version_) external;

    /// @notice Owner: have a version end at `endsAt`, earlier than it would; at once if that is not in the future.
    function shortenSunset(uint64 number, uint64 endsAt) external;

    /// @notice Owner: have a version end at `endsAt`, later than it would; zero for never. Not if it ended.
    function postponeSunset(uint64 number, uint64 endsAt) external;

    /// @notice Owner: rule out every further grant, for good; upgrades are disabled with it.
    /// @dev Denials stay possible, and so does everything that was granted until it ends or is denied.
    /// @dev A compose hash allowed alone runs on any OS image that KmsAuth allows later; a version does not.
    function freezeForGood() external;

    /// @notice Version of this contract's ABI.
    function version() external pure returns (uint256);

    /// @notice Whether this configuration is allowed on any OS image; a version that allows it does not show here.
    function allowedComposeHashes(bytes32 composeHash) external view returns (bool);

    /// @notice Whether this device is listed.
    function allowedDeviceIds(bytes32 deviceId) external view returns (bool);

    /// @notice Whether unlisted devices are allowed too.
    function allowAnyDevice() external view returns (bool);

    /// @notice Whether only the TCB status `UpToDate` is allowed.
    function requireTcbUpToDate() external view returns (bool);

    /// @notice Fails unless this version has the form that every version must have, whatever its number.
    function checkVersion(Version calldata version_) external pure;

    /// @notice Until when any TCB status is tolerated although only `UpToDate` is allowed; zero for no such time.
    function outdatedTcbToleratedUntil() external view returns (uint64);

    /// @notice Whether every further grant is ruled out: no hash, version, device, TCB status, later end or new code.
    function frozenForGood() external view returns (bool);

    /// @notice Number of the newest version; zero for none.
    function newestVersion() external view returns (uint64);

    /// @notice What is kept of a version; all zero if there is none of this number.
    function versionRecord(uint64 number) external view returns (VersionRecord memory);

    /// @notice When the end of a version was last set; zero if it never was.
    function endSetAt(uint64 number) external view returns (uint48);

    /// @notice Version numbers from `from` (zero: from the newest) on, newest first: at most `count`, and at most 100.
    function versionNumbers(uint64 from, uint256 count) external view returns (uint64[] memory);

    /// @notice Number of the newest version that has this pair; zero for none. It may be over.
    function versionOf(bytes32 composeHash, bytes32 osImageHash) external view returns (uint64);

    /// @notice Whether a configuration is allowed on an OS image at a time, if nothing is granted or denied until then.
    /// @dev Says nothing about whether KmsAuth allows the image.
    /// @param at Now or later.
    function isConfigurationAllowed(bytes32 composeHash, bytes32 osImageHash, uint256 at) external view returns (bool);

    /// @notice Whether a version lists these registers with this compose hash, at a time as above.
    /// @dev `isAppAllowed` cannot ask this, for boot info holds no registers. Whoever verifies a quote can.
    function areRegistersAllowed(bytes32 composeHash, Registers calldata registers, uint256 at)
        external
        view
        returns (bool);
}
