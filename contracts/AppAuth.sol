// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {Governed} from "./Governed.sol";
import {IAppAuth, IAppAuthBasicManagement, IAppAuthPolicy} from "./interfaces/IAppAuth.sol";
import {IGoverned} from "./interfaces/IGoverned.sol";
import {Versions} from "./Versions.sol";

/// @title One app's own gate; the words are in IAppAuthPolicy.
contract AppAuth is IAppAuthPolicy, Governed {
    /// @dev A record, and when the end in it was last set; one slot.
    struct Kept {
        uint48 addedAt;
        uint64 endsAt;
        uint64 previous;
        bool isRollback;
        uint48 endSetAt;
    }

    bytes32 private constant COMPOSE_HASH = keccak256("compose-hash");
    bytes32 private constant DEVICE = keccak256("device");
    bytes32 private constant ALLOW_ANY_DEVICE = keccak256("allow-any-device");
    bytes32 private constant REQUIRE_TCB_UP_TO_DATE = keccak256("require-tcb-up-to-date");
    bytes32 private constant OUTDATED_TCB_TOLERATED_UNTIL = keccak256("outdated-tcb-tolerated-until");
    bytes32 private constant FROZEN_FOR_GOOD = keccak256("frozen-for-good");

    /// @notice How far ahead the toleration of an outdated TCB may end.
    uint256 public constant MAX_TOLERATION = 90 days;
    /// @notice How many numbers `versionNumbers` gives at once.
    uint256 public constant MAX_PAGE = 100;

    // The order is dstack's; new state is taken from the rest of slot 3, which is read anyway, and from the gap.

    /// @inheritdoc IAppAuthPolicy
    mapping(bytes32 composeHash => bool) public allowedComposeHashes;
    bool private _upgradesDisabled;
    /// @inheritdoc IAppAuthPolicy
    bool public allowAnyDevice;
    /// @inheritdoc IAppAuthPolicy
    mapping(bytes32 deviceId => bool) public allowedDeviceIds;
    /// @inheritdoc IAppAuthPolicy
    bool public requireTcbUpToDate;
    /// @inheritdoc IAppAuthPolicy
    uint64 public outdatedTcbToleratedUntil;
    /// @inheritdoc IAppAuthPolicy
    uint64 public newestVersion;
    /// @inheritdoc IAppAuthPolicy
    bool public frozenForGood;
    /// @dev The newest version that any removal of a compose hash reached: above it, `_removedUpTo` need not be asked.
    uint64 private _newestRemoved;
    /// @dev Whether the newest version has an end: where it has none, its record need not be read.
    bool private _newestEnds;
    mapping(uint64 number => Kept) private _versions;
    /// @inheritdoc IAppAuthPolicy
    mapping(bytes32 composeHash => mapping(bytes32 osImageHash => uint64 number)) public versionOf;
    mapping(bytes32 registersKey => uint64 number) private _versionOfRegisters;
    mapping(bytes32 composeHash => uint64 newest) private _removedUpTo;
    uint256[45] private __gap;

    modifier grants() {
        require(!frozenForGood, FrozenForGood());
        _;
    }

    /// @inheritdoc IAppAuthPolicy
    function initialize(
        address initialOwner,
        bool disableUpgrades_,
        bool allowAnyDevice_,
        bytes32 deviceId,
        bytes32 composeHash
    ) external initializer {
        _initialize(initialOwner, disableUpgrades_, false, allowAnyDevice_, deviceId, composeHash);
    }

    /// @inheritdoc IAppAuthPolicy
    function initialize(
        address initialOwner,
        bool disableUpgrades_,
        bool requireTcbUpToDate_,
        bool allowAnyDevice_,
        bytes32 deviceId,
        bytes32 composeHash
    ) external initializer {
        _initialize(initialOwner, disableUpgrades_, requireTcbUpToDate_, allowAnyDevice_, deviceId, composeHash);
    }

    /// @inheritdoc IAppAuthBasicManagement
    function addComposeHash(bytes32 composeHash) external onlyOwner grants {
        _addComposeHash(composeHash);
    }

    /// @inheritdoc IAppAuthBasicManagement
    function removeComposeHash(bytes32 composeHash) external onlyOwner {
        allowedComposeHashes[composeHash] = false;
        emit ComposeHashRemoved(composeHash);
        emit PolicyChanged(msg.sender, COMPOSE_HASH, composeHash, false);
        if (newestVersion == 0) return;
        _removedUpTo[composeHash] = newestVersion;
        _newestRemoved = newestVersion;
        emit VersionsRemoved(composeHash, newestVersion);
    }

    /// @inheritdoc IAppAuthBasicManagement
    function addDevice(bytes32 deviceId) external onlyOwner grants {
        _addDevice(deviceId);
    }

    /// @inheritdoc IAppAuthBasicManagement
    function removeDevice(bytes32 deviceId) external onlyOwner {
        allowedDeviceIds[deviceId] = false;
        emit DeviceRemoved(deviceId);
        emit PolicyChanged(msg.sender, DEVICE, deviceId, false);
    }

    /// @inheritdoc IAppAuthPolicy
    function setAllowAnyDevice(bool allowAny) external onlyOwner {
        require(!allowAny || !frozenForGood, FrozenForGood());
        _setAllowAnyDevice(allowAny);
    }

    /// @inheritdoc IAppAuthPolicy
    function setRequireTcbUpToDate(bool requireUpToDate) external onlyOwner {
        require(requireUpToDate || !frozenForGood, FrozenForGood());
        _setRequireTcbUpToDate(requireUpToDate);
        if (outdatedTcbToleratedUntil != 0) _setTolerated(0);
    }

    /// @inheritdoc IAppAuthPolicy
    function tolerateOutdatedTcb(uint64 until) external onlyOwner grants {
        _checkAhead(until, block.timestamp + MAX_TOLERATION);
        if (!requireTcbUpToDate) _setRequireTcbUpToDate(true);
        _setTolerated(until);
    }

    /// @inheritdoc IAppAuthPolicy
    function addVersion(Version calldata version_) external onlyOwner grants {
        Versions.check(version_);
        uint64 number = version_.number;
        require(number > newestVersion, NumberNotRising(number, newestVersion));

        if (version_.supersedes != 0) _supersede(version_.supersedes, version_.sunset);
        _versions[number] = Kept(uint48(block.timestamp), 0, newestVersion, version_.isRollback, 0);
        newestVersion = number;
        _newestEnds = false;
        require(_enter(version_) != version_.isRollback, RollbackMisstated(number, version_.isRollback));

        emit VersionAdded(number, version_);
    }

    /// @inheritdoc IAppAuthPolicy
    function shortenSunset(uint64 number, uint64 endsAt) external onlyOwner {
        uint64 end = uint64(Math.max(endsAt, block.timestamp));
        uint64 current = _liveEnd(number);
        require(_isEarlier(end, current), SunsetNotMoved(number, endsAt, current));
        _setEnd(number, end);
    }

    /// @inheritdoc IAppAuthPolicy
    function postponeSunset(uint64 number, uint64 endsAt) external onlyOwner grants {
        uint64 current = _liveEnd(number);
        require(_isEarlier(current, endsAt), SunsetNotMoved(number, endsAt, current));
        _setEnd(number, endsAt);
    }

    /// @inheritdoc IAppAuthPolicy
    function freezeForGood() external onlyOwner {
        frozenForGood = true;
        emit AppFrozenForGood();
        emit PolicyChanged(msg.sender, FROZEN_FOR_GOOD, 0, true);
        _disableUpgrades();
    }

    /// @inheritdoc IAppAuth
    function isAppAllowed(AppBootInfo calldata bootInfo)
        external
        view
        returns (bool isAllowed, string memory reason)
    {
        if (requireTcbUpToDate && !_isUpToDate(bootInfo.tcbStatus) && block.timestamp >= outdatedTcbToleratedUntil) {
            return (false, "TCB status is not up to date");
        }
        if (!isConfigurationAllowed(bootInfo.composeHash, bootInfo.osImageHash, block.timestamp)) {
            return (false, "Compose hash not allowed");
        }
        if (!allowAnyDevice && !allowedDeviceIds[bootInfo.deviceId]) {
            return (false, "Device not allowed");
        }
        return (true, "");
    }

    /// @inheritdoc IAppAuthPolicy
    function areRegistersAllowed(bytes32 composeHash, Registers calldata registers, uint256 at)
        external
        view
        returns (bool)
    {
        return _isLive(_versionOfRegisters[Versions.key(composeHash, registers)], composeHash, at);
    }

    /// @inheritdoc IAppAuthPolicy
    function checkVersion(Version calldata version_) external pure {
        Versions.check(version_);
    }

    /// @inheritdoc IAppAuthPolicy
    function versionRecord(uint64 number) external view returns (VersionRecord memory) {
        Kept storage kept = _versions[number];
        return VersionRecord(kept.addedAt, kept.endsAt, kept.previous, kept.isRollback);
    }

    /// @inheritdoc IAppAuthPolicy
    function endSetAt(uint64 number) external view returns (uint48) {
        return _versions[number].endSetAt;
    }

    /// @inheritdoc IAppAuthPolicy
    function versionNumbers(uint64 from, uint256 count) external view returns (uint64[] memory page) {
        uint64[] memory found = new uint64[](Math.min(count, MAX_PAGE));
        uint256 length = 0;
        uint64 number = from == 0 ? newestVersion : from;
        while (length < found.length && _versions[number].addedAt != 0) {
            found[length++] = number;
            number = _versions[number].previous;
        }
        page = new uint64[](length);
        for (uint256 i = 0; i < length; i++) {
            page[i] = found[i];
        }
    }

    /// @inheritdoc IAppAuthPolicy
    function version() external pure returns (uint256) {
        return 2;
    }

    /// @inheritdoc IAppAuthPolicy
    function isConfigurationAllowed(bytes32 composeHash, bytes32 osImageHash, uint256 at) public view returns (bool) {
        if (newestVersion != 0 && _isLive(versionOf[composeHash][osImageHash], composeHash, at)) return true;
        return allowedComposeHashes[composeHash];
    }

    /// @inheritdoc Governed
    function upgradesDisabled() public view override(IGoverned, Governed) returns (bool) {
        return _upgradesDisabled;
    }

    /// @notice ERC-165 itself, IAppAuth and IAppAuthBasicManagement.
    function supportsInterface(bytes4 interfaceId) public view override returns (bool) {
        return interfaceId == type(IAppAuth).interfaceId || interfaceId == type(IAppAuthBasicManagement).interfaceId
            || super.supportsInterface(interfaceId);
    }

    function _initialize(
        address initialOwner,
        bool disableUpgrades_,
        bool requireTcbUpToDate_,
        bool allowAnyDevice_,
        bytes32 deviceId,
        bytes32 composeHash
    ) private {
        require(initialOwner != address(0), "invalid owner address");
        __Ownable_init(initialOwner);
        _setRequireTcbUpToDate(requireTcbUpToDate_);
        _setAllowAnyDevice(allowAnyDevice_);
        if (disableUpgrades_) _disableUpgrades();
        if (deviceId != 0) _addDevice(deviceId);
        if (composeHash != 0) _addComposeHash(composeHash);
    }

    function _addComposeHash(bytes32 composeHash) private {
        _refuseZero(COMPOSE_HASH, composeHash);
        allowedComposeHashes[composeHash] = true;
        emit ComposeHashAdded(composeHash);
        emit PolicyChanged(msg.sender, COMPOSE_HASH, composeHash, true);
    }

    function _addDevice(bytes32 deviceId) private {
        _refuseZero(DEVICE, deviceId);
        allowedDeviceIds[deviceId] = true;
        emit DeviceAdded(deviceId);
        emit PolicyChanged(msg.sender, DEVICE, deviceId, true);
    }

    function _setAllowAnyDevice(bool allowAny) private {
        emit PolicyReplaced(ALLOW_ANY_DEVICE, _word(allowAnyDevice), _word(allowAny));
        allowAnyDevice = allowAny;
        emit AllowAnyDeviceSet(allowAny);
        emit PolicyChanged(msg.sender, ALLOW_ANY_DEVICE, 0, allowAny);
    }

    function _setRequireTcbUpToDate(bool requireUpToDate) private {
        emit PolicyReplaced(REQUIRE_TCB_UP_TO_DATE, _word(requireTcbUpToDate), _word(requireUpToDate));
        requireTcbUpToDate = requireUpToDate;
        emit RequireTcbUpToDateSet(requireUpToDate);
        emit PolicyChanged(msg.sender, REQUIRE_TCB_UP_TO_DATE, 0, requireUpToDate);
    }

    function _setTolerated(uint64 until) private {
        bytes32 previous = bytes32(uint256(outdatedTcbToleratedUntil));
        emit PolicyReplaced(OUTDATED_TCB_TOLERATED_UNTIL, previous, bytes32(uint256(until)));
        outdatedTcbToleratedUntil = until;
        emit OutdatedTcbToleratedUntil(until);
    }

    /// @dev Makes the version the newest of all it lists; whether any of that was in no version before.
    function _enter(Version calldata version_) private returns (bool isNew) {
        for (uint256 i = 0; i < version_.osImageHashes.length; i++) {
            bytes32 osImageHash = version_.osImageHashes[i];
            isNew = isNew || versionOf[version_.composeHash][osImageHash] == 0;
            versionOf[version_.composeHash][osImageHash] = version_.number;
        }
        for (uint256 i = 0; i < version_.registers.length; i++) {
            bytes32 key = Versions.key(version_.composeHash, version_.registers[i]);
            isNew = isNew || _versionOfRegisters[key] == 0;
            _versionOfRegisters[key] = version_.number;
        }
    }

    function _supersede(uint64 number, uint64 sunset) private {
        require(_versions[number].addedAt != 0, VersionUnknown(number));
        uint64 end = uint64(Math.max(sunset, block.timestamp));
        if (_isEarlier(end, _versions[number].endsAt)) _setEnd(number, end);
    }

    function _setEnd(uint64 number, uint64 endsAt) private {
        emit VersionEndSet(number, _versions[number].endsAt, endsAt);
        _versions[number].endsAt = endsAt;
        _versions[number].endSetAt = uint48(block.timestamp);
        if (number == newestVersion) _newestEnds = endsAt != 0;
    }

    function _storeUpgradesDisabled() internal override {
        _upgradesDisabled = true;
    }

    /// @dev The end of a version that exists and has not ended.
    function _liveEnd(uint64 number) private view returns (uint64 endsAt) {
        endsAt = _versions[number].endsAt;
        require(_versions[number].addedAt != 0, VersionUnknown(number));
        require(_isEarlier(uint64(block.timestamp), endsAt), VersionEnded(number, endsAt));
    }

    function _isLive(uint64 number, bytes32 composeHash, uint256 at) private view returns (bool) {
        if (number == 0 || (number <= _newestRemoved && number <= _removedUpTo[composeHash])) return false;
        if (number == newestVersion && !_newestEnds) return true;
        uint64 endsAt = _versions[number].endsAt;
        return endsAt == 0 || at < endsAt;
    }

    function _checkAhead(uint256 time, uint256 latest) private view {
        require(time > block.timestamp && time <= latest, TimeOutOfRange(time, block.timestamp + 1, latest));
    }

    /// @dev Zero is never, later than any time.
    function _isEarlier(uint64 time, uint64 other) private pure returns (bool) {
        return time != 0 && (other == 0 || time < other);
    }
}
