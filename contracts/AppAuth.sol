// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {Governed} from "./Governed.sol";
import {IAppAuth, IAppAuthBasicManagement, IAppAuthPolicy} from "./interfaces/IAppAuth.sol";
import {IGoverned} from "./interfaces/IGoverned.sol";
import {Versions} from "./Versions.sol";

/// @title One app's own gate; the words are in IAppAuthPolicy.
contract AppAuth is IAppAuthPolicy, Governed {
    /// @dev A record, and when the end in it was last set; one slot. Of the newest version only the end stands in it:
    /// the rest stands in slot 3 until the next version comes, so that adding a version writes one record, not two.
    struct Kept {
        uint40 addedAt;
        uint64 endsAt;
        uint48 previous;
        bool isRollback;
        uint40 endSetAt;
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

    // The order is dstack's; new state is taken from the rest of slot 3, which is read anyway and now full, and from
    // the gap. Versions are numbered in 48 bits and times kept in 40.

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
    bool public frozenForGood;
    uint40 private _toleratedUntil;
    /// @dev The newest version that any removal of a compose hash reached: above it, `_removedUpTo` need not be asked.
    uint48 private _newestRemoved;
    uint48 private _newest;
    uint48 private _newestPrevious;
    uint40 private _newestAddedAt;
    bool private _newestIsRollback;
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
        if (_newest == 0) return;
        _removedUpTo[composeHash] = _newest;
        _newestRemoved = _newest;
        emit VersionsRemoved(composeHash, _newest);
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
        if (_toleratedUntil != 0) _setTolerated(0);
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
        (uint64 number, uint64 supersedes, bool isRollback) =
            (version_.number, version_.supersedes, version_.isRollback);
        uint48 newest = _newest;
        require(number > newest, NumberNotRising(number, newest));

        if (newest != 0) _file(newest);
        if (supersedes != 0) _supersede(supersedes, version_.sunset);
        (_newest, _newestPrevious, _newestAddedAt, _newestIsRollback, _newestEnds) =
            (uint48(number), newest, uint40(block.timestamp), isRollback, false);
        require(_enter(version_, number) != isRollback, RollbackMisstated(number, isRollback));

        emit VersionAdded(version_);
    }

    /// @inheritdoc IAppAuthPolicy
    function shortenSunset(uint64 number, uint64 endsAt) external onlyOwner {
        uint64 end = uint64(Math.max(endsAt, block.timestamp));
        uint64 current = _liveEnd(number);
        require(_isEarlier(end, current), SunsetNotMoved(number, endsAt, current));
        _moveEnd(number, end);
    }

    /// @inheritdoc IAppAuthPolicy
    function postponeSunset(uint64 number, uint64 endsAt) external onlyOwner grants {
        uint64 current = _liveEnd(number);
        require(_isEarlier(current, endsAt), SunsetNotMoved(number, endsAt, current));
        _moveEnd(number, endsAt);
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
        if (requireTcbUpToDate && !_isUpToDate(bootInfo.tcbStatus) && block.timestamp >= _toleratedUntil) {
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
        Kept memory kept = _kept(number);
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
        uint64 number = from == 0 ? _newest : from;
        while (length < found.length && _exists(number)) {
            found[length++] = number;
            number = _kept(number).previous;
        }
        page = new uint64[](length);
        for (uint256 i = 0; i < length; i++) {
            page[i] = found[i];
        }
    }

    /// @inheritdoc IAppAuthPolicy
    function newestVersion() external view returns (uint64) {
        return _newest;
    }

    /// @inheritdoc IAppAuthPolicy
    function outdatedTcbToleratedUntil() external view returns (uint64) {
        return _toleratedUntil;
    }

    /// @inheritdoc IAppAuthPolicy
    function version() external pure returns (uint256) {
        return 2;
    }

    /// @inheritdoc IAppAuthPolicy
    function isConfigurationAllowed(bytes32 composeHash, bytes32 osImageHash, uint256 at) public view returns (bool) {
        if (_newest != 0 && _isLive(versionOf[composeHash][osImageHash], composeHash, at)) return true;
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
        bytes32 previous = bytes32(uint256(_toleratedUntil));
        emit PolicyReplaced(OUTDATED_TCB_TOLERATED_UNTIL, previous, bytes32(uint256(until)));
        _toleratedUntil = uint40(until);
        emit OutdatedTcbToleratedUntil(until);
    }

    /// @dev Makes the version the newest of all it lists; whether any of that was in no version before.
    function _enter(Version calldata version_, uint64 number) private returns (bool isNew) {
        bytes32 composeHash = version_.composeHash;
        bytes32[] calldata osImageHashes = version_.osImageHashes;
        for (uint256 i = 0; i < osImageHashes.length; i++) {
            isNew = _enter(versionOf[composeHash], osImageHashes[i], number) || isNew;
        }
        Registers[] calldata registers = version_.registers;
        for (uint256 i = 0; i < registers.length; i++) {
            isNew = _enter(_versionOfRegisters, Versions.key(composeHash, registers[i]), number) || isNew;
        }
    }

    function _enter(mapping(bytes32 => uint64) storage versions, bytes32 key, uint64 number) private returns (bool) {
        uint64 previous = versions[key];
        versions[key] = number;
        return previous == 0;
    }

    /// @dev Puts what stands in slot 3 about the newest version into its record, because it will not be the newest.
    function _file(uint48 number) private {
        Kept storage kept = _versions[number];
        (kept.addedAt, kept.previous, kept.isRollback) = (_newestAddedAt, _newestPrevious, _newestIsRollback);
    }

    function _supersede(uint64 number, uint64 sunset) private {
        Kept storage kept = _versions[number];
        require(kept.addedAt != 0, VersionUnknown(number));
        uint64 end = uint64(Math.max(sunset, block.timestamp));
        if (_isEarlier(end, kept.endsAt)) _setEnd(kept, number, end);
    }

    function _moveEnd(uint64 number, uint64 endsAt) private {
        if (number == _newest) _newestEnds = endsAt != 0;
        _setEnd(_versions[number], number, endsAt);
    }

    function _setEnd(Kept storage kept, uint64 number, uint64 endsAt) private {
        emit VersionEndSet(number, kept.endsAt, endsAt);
        (kept.endsAt, kept.endSetAt) = (endsAt, uint40(block.timestamp));
    }

    function _storeUpgradesDisabled() internal override {
        _upgradesDisabled = true;
    }

    /// @dev The end of a version that exists and has not ended.
    function _liveEnd(uint64 number) private view returns (uint64 endsAt) {
        endsAt = _versions[number].endsAt;
        require(_exists(number), VersionUnknown(number));
        require(_isEarlier(uint64(block.timestamp), endsAt), VersionEnded(number, endsAt));
    }

    function _exists(uint64 number) private view returns (bool) {
        return number != 0 && (number == _newest || _versions[number].addedAt != 0);
    }

    /// @dev All that is known of a version, wherever it stands.
    function _kept(uint64 number) private view returns (Kept memory kept) {
        kept = _versions[number];
        if (number == _newest) {
            (kept.addedAt, kept.previous, kept.isRollback) = (_newestAddedAt, _newestPrevious, _newestIsRollback);
        }
    }

    function _isLive(uint64 number, bytes32 composeHash, uint256 at) private view returns (bool) {
        if (number == 0 || (number <= _newestRemoved && number <= _removedUpTo[composeHash])) return false;
        if (number == _newest && !_newestEnds) return true;
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
