// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {IAppAuth} from "./IAppAuth.sol";
import {IGoverned} from "./IGoverned.sol";

/// @dev How long at least, and at most, the keys of an epoch are served after the next one began.
uint256 constant MIN_EPOCH_WINDOW = 1 days;
uint256 constant MAX_EPOCH_WINDOW = 90 days;

/// @title Which KMS, OS images and apps may exist. The role of dstack's DstackKms; also IAppAuth, by delegation.
/// @dev The owner may change the lists of KMS measurements, KMS devices and OS images, the gateway, the published KMS
/// info, the implementation for new apps, and, until upgrades are disabled, the code. It may freeze an app, for at most
/// 7 days at a time. It cannot remove an app, nor decide in place of an app's own contract: both gates must be open.
/// Anybody may register an app, because an app's keys follow from its address.
/// @dev Keys belong to an epoch, 0 at first. The owner may begin the next one; the one before is served on for a time
/// that is fixed then, and the next cannot begin before that has passed. No epoch is ever served again.
/// @dev How soon a freeze may follow another is for the owner to bound; UpgradeOperator does.
interface IKmsAuth is IGoverned, IAppAuth {
    /// @notice Public facts about the running KMS; nothing in this contract depends on them.
    struct KmsInfo {
        bytes k256Pubkey;
        bytes caPubkey;
        bytes quote;
        bytes eventlog;
    }

    /// @notice A freeze would end in the past, or more than 7 days ahead.
    error FreezeOutOfRange(uint256 got, uint256 earliest, uint256 latest);

    /// @notice Epochs rise by one.
    error EpochNotNext(uint64 got, uint64 want);

    /// @notice The epoch before would be served on for less than a day, or for more than 90 days.
    error EpochWindowOutOfRange(uint64 got, uint256 shortest, uint256 longest);

    /// @notice The epoch before the current one is served on; no other can begin before `until`.
    error PreviousEpochServed(uint64 until);

    /// @notice Keys are those of epoch `current`, and of `previous` before `previousServedUntil`.
    event KeyEpochBegan(uint64 previous, uint64 current, uint64 previousServedUntil);

    /// @notice `appId` gets no keys before `until`; its last freeze ends or ended at `previous`, zero if there was none.
    event AppFrozen(address appId, uint64 previous, uint64 until);

    /// @notice `appId` is not frozen from now on; its last freeze was to end, or ended, at `previous`.
    event AppUnfrozen(address appId, uint64 previous);

    /// @notice The published KMS info, whole, whichever part of it was set.
    event KmsInfoPublished(KmsInfo info);

    /// @notice `appId` is an app whose contract is asked from now on.
    event AppRegistered(address appId);

    /// @notice The published KMS info is new; its quote and event log are in storage.
    event KmsInfoSet(bytes k256Pubkey);

    /// @notice A KMS with this measurement may have the root keys.
    event KmsAggregatedMrAdded(bytes32 mrAggregated);

    /// @notice A KMS with this measurement may no longer have the root keys.
    event KmsAggregatedMrRemoved(bytes32 mrAggregated);

    /// @notice A KMS may run on this device.
    event KmsDeviceAdded(bytes32 deviceId);

    /// @notice A KMS may no longer run on this device.
    event KmsDeviceRemoved(bytes32 deviceId);

    /// @notice Machines may run this OS image.
    event OsImageHashAdded(bytes32 osImageHash);

    /// @notice Machines may no longer run this OS image.
    event OsImageHashRemoved(bytes32 osImageHash);

    /// @notice Apps are told to trust this gateway only.
    event GatewayAppIdSet(string gatewayAppId);

    /// @notice New apps made by the factory run this code.
    event AppImplementationSet(address implementation);

    /// @notice The factory made the app `appId` for `deployer`.
    event AppDeployedViaFactory(address indexed appId, address indexed deployer);

    /// @notice Sets up a new proxy, once.
    /// @param initialOwner Who governs; not zero.
    /// @param appImplementation_ Code for new apps; zero leaves the factory closed until the owner sets it.
    function initialize(address initialOwner, address appImplementation_) external;

    /// @notice Owner: publish facts about the running KMS.
    function setKmsInfo(KmsInfo calldata info) external;

    /// @notice Owner: publish the KMS's quote.
    function setKmsQuote(bytes calldata quote) external;

    /// @notice Owner: publish the KMS's event log.
    function setKmsEventlog(bytes calldata eventlog) external;

    /// @notice Owner: name the gateway.
    function setGatewayAppId(string calldata gatewayAppId_) external;

    /// @notice Owner: set the code that new apps run; existing apps keep theirs.
    function setAppImplementation(address implementation) external;

    /// @notice Owner: allow a KMS measurement.
    function addKmsAggregatedMr(bytes32 mrAggregated) external;

    /// @notice Owner: forbid a KMS measurement.
    /// @dev Warning: a KMS that has the root keys keeps them.
    function removeKmsAggregatedMr(bytes32 mrAggregated) external;

    /// @notice Owner: allow a device for a KMS.
    function addKmsDevice(bytes32 deviceId) external;

    /// @notice Owner: forbid a device for a KMS.
    function removeKmsDevice(bytes32 deviceId) external;

    /// @notice Owner: allow an OS image, for every app and KMS.
    function addOsImageHash(bytes32 osImageHash) external;

    /// @notice Owner: forbid an OS image, for every app and KMS.
    function removeOsImageHash(bytes32 osImageHash) external;

    /// @notice Owner: give an app no keys before `until`, at most 7 days ahead. A running freeze may become longer, not
    /// shorter.
    /// @dev Warning: keys already released are not taken back.
    function freezeApp(address appId, uint64 until) external;

    /// @notice Owner: end the freeze of an app now, if it has not ended by itself.
    function unfreezeApp(address appId) external;

    /// @notice Owner: begin the next epoch of keys now; `window` is for how many seconds the one before is served on.
    /// @dev Warning: what apps sealed under keys of the epoch before must be sealed anew within that time.
    function rotateKeys(uint64 epoch, uint64 window) external;

    /// @notice Anybody: have `appId`'s contract asked. Cannot be undone, and grants nothing by itself.
    function registerApp(address appId) external;

    /// @notice Anybody: make a new app of the current implementation and register it.
    function deployAndRegisterApp(
        address initialOwner,
        bool disableUpgrades,
        bool requireTcbUpToDate,
        bool allowAnyDevice,
        bytes32 deviceId,
        bytes32 composeHash
    ) external returns (address appId);

    /// @notice The same, tolerating any TCB status.
    function deployAndRegisterApp(
        address initialOwner,
        bool disableUpgrades,
        bool allowAnyDevice,
        bytes32 deviceId,
        bytes32 composeHash
    ) external returns (address appId);

    /// @notice Whether a KMS with this boot info may have the root keys, and if not, why.
    /// @dev Gates, in this order: TCB status `UpToDate`, OS image, aggregated measurement, device.
    function isKmsAllowed(AppBootInfo calldata bootInfo) external view returns (bool isAllowed, string memory reason);

    /// @notice The published KMS info.
    function kmsInfo()
        external
        view
        returns (bytes memory k256Pubkey, bytes memory caPubkey, bytes memory quote, bytes memory eventlog);

    /// @notice The gateway that apps trust; empty when none was named.
    function gatewayAppId() external view returns (string memory);

    /// @notice Whether this app's contract is asked.
    function registeredApps(address appId) external view returns (bool);

    /// @notice Whether this KMS measurement is allowed.
    function kmsAllowedAggregatedMrs(bytes32 mrAggregated) external view returns (bool);

    /// @notice Whether a KMS may run on this device.
    function kmsAllowedDeviceIds(bytes32 deviceId) external view returns (bool);

    /// @notice Whether this OS image is allowed.
    function allowedOsImages(bytes32 osImageHash) external view returns (bool);

    /// @notice Code of new apps.
    function appImplementation() external view returns (address);

    /// @notice When the last freeze of this app ends or ended; zero if there was none.
    /// @dev It is frozen before that time, and no longer at it.
    function frozenUntil(address appId) external view returns (uint64);

    /// @notice The epoch whose keys are served, and the one before, which is served on before `previousServedUntil`.
    /// @dev `previous` means nothing while `previousServedUntil` is zero: there was none.
    function keyEpoch() external view returns (uint64 current, uint64 previous, uint64 previousServedUntil);

    /// @notice Whether the keys of an epoch are served at a time, now or later, if no other epoch begins until then.
    function isKeyEpochServed(uint64 epoch, uint256 at) external view returns (bool);

    /// @notice Whether this app was made by this contract's factory, from code that this contract's owner had set.
    /// @dev Says nothing about its code today: its own owner may have upgraded it.
    function isFactoryMade(address appId) external view returns (bool);
}
