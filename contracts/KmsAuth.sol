// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {ERC1967Proxy} from "@openzeppelin/contracts/proxy/ERC1967/ERC1967Proxy.sol";
import {LowLevelCall} from "@openzeppelin/contracts/utils/LowLevelCall.sol";
import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {Governed} from "./Governed.sol";
import {IAppAuth} from "./interfaces/IAppAuth.sol";
import {IGoverned} from "./interfaces/IGoverned.sol";
import {IKmsAuth, MAX_EPOCH_WINDOW, MIN_EPOCH_WINDOW} from "./interfaces/IKmsAuth.sol";

/// @title The gate of the whole system; the words are in IKmsAuth.
contract KmsAuth is IKmsAuth, Governed {
    bytes32 private constant APP_IMPLEMENTATION = keccak256("app-implementation");
    bytes32 private constant KMS_INFO = keccak256("kms-info");
    bytes32 private constant GATEWAY_APP_ID = keccak256("gateway-app-id");
    bytes32 private constant REGISTERED_APP = keccak256("registered-app");
    bytes32 private constant KMS_AGGREGATED_MR = keccak256("kms-aggregated-mr");
    bytes32 private constant KMS_DEVICE = keccak256("kms-device");
    bytes32 private constant OS_IMAGE = keccak256("os-image");
    bytes32 private constant APP_FREEZE = keccak256("app-freeze");
    bytes32 private constant KEY_EPOCH = keccak256("key-epoch");

    /// @notice How far ahead a freeze may end.
    uint256 public constant MAX_FREEZE = 7 days;

    /// @dev What an app's contract may use to answer.
    uint256 private constant APP_GAS = 1_000_000;

    /// @dev A longer answer is none, and is not even copied.
    uint256 private constant MAX_ANSWER = 1024;

    /// @dev The three words before the text in an ABI-encoded (bool, string).
    uint256 private constant ANSWER_HEAD = 96;

    /// @dev The usual answer, known without being decoded.
    bytes32 private constant PLAIN_YES = keccak256(abi.encode(true, ""));

    // The order is dstack's; new state is taken from the gap.

    /// @inheritdoc IKmsAuth
    KmsInfo public kmsInfo;
    /// @inheritdoc IKmsAuth
    string public gatewayAppId;
    /// @inheritdoc IKmsAuth
    mapping(address appId => bool) public registeredApps;
    /// @inheritdoc IKmsAuth
    mapping(bytes32 mrAggregated => bool) public kmsAllowedAggregatedMrs;
    /// @inheritdoc IKmsAuth
    mapping(bytes32 deviceId => bool) public kmsAllowedDeviceIds;
    /// @inheritdoc IKmsAuth
    mapping(bytes32 osImageHash => bool) public allowedOsImages;
    /// @inheritdoc IKmsAuth
    address public appImplementation;
    /// @inheritdoc IKmsAuth
    mapping(address appId => uint64 time) public frozenUntil;
    /// @inheritdoc IKmsAuth
    mapping(address appId => bool) public isFactoryMade;
    bool private _upgradesDisabled;
    uint64 private _keyEpoch;
    uint64 private _previousServedUntil;
    uint256[47] private __gap;

    /// @inheritdoc IKmsAuth
    function initialize(address initialOwner, address appImplementation_) external initializer {
        __Ownable_init(initialOwner);
        if (appImplementation_ != address(0)) _setAppImplementation(appImplementation_);
    }

    /// @inheritdoc IKmsAuth
    function setKmsInfo(KmsInfo calldata info) external onlyOwner {
        kmsInfo = info;
        emit KmsInfoSet(info.k256Pubkey);
        _announceKmsInfo();
    }

    /// @inheritdoc IKmsAuth
    function setKmsQuote(bytes calldata quote) external onlyOwner {
        kmsInfo.quote = quote;
        _announceKmsInfo();
    }

    /// @inheritdoc IKmsAuth
    function setKmsEventlog(bytes calldata eventlog) external onlyOwner {
        kmsInfo.eventlog = eventlog;
        _announceKmsInfo();
    }

    /// @inheritdoc IKmsAuth
    function setGatewayAppId(string calldata gatewayAppId_) external onlyOwner {
        bytes32 previous = keccak256(bytes(gatewayAppId));
        gatewayAppId = gatewayAppId_;
        emit GatewayAppIdSet(gatewayAppId_);
        emit PolicyReplaced(GATEWAY_APP_ID, previous, keccak256(bytes(gatewayAppId_)));
        emit PolicyChanged(msg.sender, GATEWAY_APP_ID, keccak256(bytes(gatewayAppId_)), true);
    }

    /// @inheritdoc IKmsAuth
    function setAppImplementation(address implementation) external onlyOwner {
        _setAppImplementation(implementation);
    }

    /// @inheritdoc IKmsAuth
    function addKmsAggregatedMr(bytes32 mrAggregated) external onlyOwner {
        _refuseZero(KMS_AGGREGATED_MR, mrAggregated);
        kmsAllowedAggregatedMrs[mrAggregated] = true;
        emit KmsAggregatedMrAdded(mrAggregated);
        emit PolicyChanged(msg.sender, KMS_AGGREGATED_MR, mrAggregated, true);
    }

    /// @inheritdoc IKmsAuth
    function removeKmsAggregatedMr(bytes32 mrAggregated) external onlyOwner {
        kmsAllowedAggregatedMrs[mrAggregated] = false;
        emit KmsAggregatedMrRemoved(mrAggregated);
        emit PolicyChanged(msg.sender, KMS_AGGREGATED_MR, mrAggregated, false);
    }

    /// @inheritdoc IKmsAuth
    function addKmsDevice(bytes32 deviceId) external onlyOwner {
        _refuseZero(KMS_DEVICE, deviceId);
        kmsAllowedDeviceIds[deviceId] = true;
        emit KmsDeviceAdded(deviceId);
        emit PolicyChanged(msg.sender, KMS_DEVICE, deviceId, true);
    }

    /// @inheritdoc IKmsAuth
    function removeKmsDevice(bytes32 deviceId) external onlyOwner {
        kmsAllowedDeviceIds[deviceId] = false;
        emit KmsDeviceRemoved(deviceId);
        emit PolicyChanged(msg.sender, KMS_DEVICE, deviceId, false);
    }

    /// @inheritdoc IKmsAuth
    function addOsImageHash(bytes32 osImageHash) external onlyOwner {
        _refuseZero(OS_IMAGE, osImageHash);
        allowedOsImages[osImageHash] = true;
        emit OsImageHashAdded(osImageHash);
        emit PolicyChanged(msg.sender, OS_IMAGE, osImageHash, true);
    }

    /// @inheritdoc IKmsAuth
    function removeOsImageHash(bytes32 osImageHash) external onlyOwner {
        allowedOsImages[osImageHash] = false;
        emit OsImageHashRemoved(osImageHash);
        emit PolicyChanged(msg.sender, OS_IMAGE, osImageHash, false);
    }

    /// @inheritdoc IKmsAuth
    function freezeApp(address appId, uint64 until) external onlyOwner {
        _refuseZero(APP_FREEZE, _word(appId));
        uint64 previous = frozenUntil[appId];
        uint256 earliest = Math.max(previous, block.timestamp + 1);
        uint256 latest = block.timestamp + MAX_FREEZE;
        require(until >= earliest && until <= latest, FreezeOutOfRange(until, earliest, latest));

        frozenUntil[appId] = until;
        emit AppFrozen(appId, previous, until);
        emit PolicyChanged(msg.sender, APP_FREEZE, _word(appId), true);
    }

    /// @inheritdoc IKmsAuth
    function unfreezeApp(address appId) external onlyOwner {
        uint64 previous = frozenUntil[appId];
        frozenUntil[appId] = uint64(Math.min(previous, block.timestamp));
        emit AppUnfrozen(appId, previous);
        emit PolicyChanged(msg.sender, APP_FREEZE, _word(appId), false);
    }

    /// @inheritdoc IKmsAuth
    function rotateKeys(uint64 epoch, uint64 window) external onlyOwner {
        (uint64 previous, uint64 servedUntil) = (_keyEpoch, _previousServedUntil);
        require(epoch == previous + 1, EpochNotNext(epoch, previous + 1));
        require(
            window >= MIN_EPOCH_WINDOW && window <= MAX_EPOCH_WINDOW,
            EpochWindowOutOfRange(window, MIN_EPOCH_WINDOW, MAX_EPOCH_WINDOW)
        );
        require(block.timestamp >= servedUntil, PreviousEpochServed(servedUntil));

        (_keyEpoch, _previousServedUntil) = (epoch, uint64(block.timestamp) + window);
        emit KeyEpochBegan(previous, epoch, _previousServedUntil);
        emit PolicyReplaced(KEY_EPOCH, bytes32(uint256(previous)), bytes32(uint256(epoch)));
        emit PolicyChanged(msg.sender, KEY_EPOCH, bytes32(uint256(epoch)), true);
    }

    /// @inheritdoc IKmsAuth
    function registerApp(address appId) external {
        _registerApp(appId);
    }

    /// @inheritdoc IKmsAuth
    function deployAndRegisterApp(
        address initialOwner,
        bool disableUpgrades,
        bool allowAnyDevice,
        bytes32 deviceId,
        bytes32 composeHash
    ) external returns (address appId) {
        return _deployApp(initialOwner, disableUpgrades, false, allowAnyDevice, deviceId, composeHash);
    }

    /// @inheritdoc IKmsAuth
    function deployAndRegisterApp(
        address initialOwner,
        bool disableUpgrades,
        bool requireTcbUpToDate,
        bool allowAnyDevice,
        bytes32 deviceId,
        bytes32 composeHash
    ) external returns (address appId) {
        return _deployApp(initialOwner, disableUpgrades, requireTcbUpToDate, allowAnyDevice, deviceId, composeHash);
    }

    /// @inheritdoc IKmsAuth
    function isKmsAllowed(AppBootInfo calldata bootInfo)
        external
        view
        returns (bool isAllowed, string memory reason)
    {
        if (!_isUpToDate(bootInfo.tcbStatus)) return (false, "TCB status is not up to date");
        if (!allowedOsImages[bootInfo.osImageHash]) return (false, "OS image is not allowed");
        if (!kmsAllowedAggregatedMrs[bootInfo.mrAggregated]) return (false, "Aggregated MR not allowed");
        if (!kmsAllowedDeviceIds[bootInfo.deviceId]) return (false, "KMS is not allowed to boot on this device");
        return (true, "");
    }

    /// @inheritdoc IKmsAuth
    function keyEpoch() external view returns (uint64 current, uint64 previous, uint64 previousServedUntil) {
        return (_keyEpoch, _keyEpoch == 0 ? 0 : _keyEpoch - 1, _previousServedUntil);
    }

    /// @inheritdoc IKmsAuth
    function isKeyEpochServed(uint64 epoch, uint256 at) external view returns (bool) {
        return epoch == _keyEpoch || (epoch < _keyEpoch && epoch == _keyEpoch - 1 && at < _previousServedUntil);
    }

    /// @inheritdoc IAppAuth
    /// @dev Gates, in this order: registered, not frozen, OS image, code at the app's address, the app's own contract.
    /// That one is somebody else's code: it cannot write, its gas and the length of its answer are bounded, and unless
    /// it answers in form the answer is no.
    function isAppAllowed(AppBootInfo calldata bootInfo)
        external
        view
        returns (bool isAllowed, string memory reason)
    {
        if (!registeredApps[bootInfo.appId]) return (false, "App not registered");
        if (block.timestamp < frozenUntil[bootInfo.appId]) return (false, "App is frozen");
        if (!allowedOsImages[bootInfo.osImageHash]) return (false, "OS image is not allowed");
        if (bootInfo.appId.code.length == 0) return (false, "App not deployed or invalid address");

        bytes memory answer = _ask(bootInfo.appId, msg.data);
        if (keccak256(answer) == PLAIN_YES) return (true, "");
        if (!_isAnswer(answer)) return (false, "App contract did not answer");
        return abi.decode(answer, (bool, string));
    }

    /// @inheritdoc Governed
    function upgradesDisabled() public view override(IGoverned, Governed) returns (bool) {
        return _upgradesDisabled;
    }

    /// @notice ERC-165 itself and IAppAuth.
    function supportsInterface(bytes4 interfaceId) public view override returns (bool) {
        return interfaceId == type(IAppAuth).interfaceId || super.supportsInterface(interfaceId);
    }

    function _storeUpgradesDisabled() internal override {
        _upgradesDisabled = true;
    }

    function _announceKmsInfo() private {
        emit KmsInfoPublished(kmsInfo);
        emit PolicyChanged(msg.sender, KMS_INFO, keccak256(abi.encode(kmsInfo)), true);
    }

    function _setAppImplementation(address implementation) private {
        _refuseZero(APP_IMPLEMENTATION, _word(implementation));
        emit PolicyReplaced(APP_IMPLEMENTATION, _word(appImplementation), _word(implementation));
        appImplementation = implementation;
        emit AppImplementationSet(implementation);
        emit PolicyChanged(msg.sender, APP_IMPLEMENTATION, _word(implementation), true);
    }

    function _registerApp(address appId) private {
        require(appId != address(0), "Invalid app ID");
        registeredApps[appId] = true;
        emit AppRegistered(appId);
        emit PolicyChanged(msg.sender, REGISTERED_APP, _word(appId), true);
    }

    function _deployApp(
        address initialOwner,
        bool disableUpgrades,
        bool requireTcbUpToDate,
        bool allowAnyDevice,
        bytes32 deviceId,
        bytes32 composeHash
    ) private returns (address appId) {
        require(appImplementation != address(0), "DstackApp implementation not set");
        require(initialOwner != address(0), "Invalid owner address");

        bytes memory setUp = abi.encodeWithSignature(
            "initialize(address,bool,bool,bool,bytes32,bytes32)",
            initialOwner,
            disableUpgrades,
            requireTcbUpToDate,
            allowAnyDevice,
            deviceId,
            composeHash
        );
        appId = address(new ERC1967Proxy(appImplementation, setUp));
        isFactoryMade[appId] = true;
        _registerApp(appId);
        emit AppDeployedViaFactory(appId, msg.sender);
    }

    /// @dev The answer of `app`; empty if it fails or is longer than any answer may be.
    /// The one instruction of assembly is there because Solidity copies whatever an outside call returns, before it can
    /// be looked at: an app that returns hundreds of kilobytes would have the caller pay for them.
    function _ask(address app, bytes memory question) private view returns (bytes memory) {
        bool success;
        assembly ("memory-safe") {
            success := staticcall(APP_GAS, app, add(question, 0x20), mload(question), 0, 0)
        }
        return success && LowLevelCall.returnDataSize() <= MAX_ANSWER ? LowLevelCall.returnData() : bytes("");
    }

    /// @dev Whether `answer` cannot fail to decode as (bool, string) in the usual layout.
    function _isAnswer(bytes memory answer) private pure returns (bool) {
        if (answer.length < ANSWER_HEAD) return false;
        (uint256 isAllowed, uint256 offset, uint256 length) = abi.decode(answer, (uint256, uint256, uint256));
        return isAllowed <= 1 && offset == 64 && length <= answer.length - ANSWER_HEAD;
    }
}
