// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {ERC1967Proxy} from "@openzeppelin/contracts/proxy/ERC1967/ERC1967Proxy.sol";
import {Governed} from "./Governed.sol";
import {IAppAuth} from "./interfaces/IAppAuth.sol";
import {IKmsAuth} from "./interfaces/IKmsAuth.sol";

/// @title The gate of the whole system; the words are in IKmsAuth.
contract KmsAuth is IKmsAuth, Governed {
    bytes32 private constant APP_IMPLEMENTATION = keccak256("app-implementation");
    bytes32 private constant KMS_INFO = keccak256("kms-info");
    bytes32 private constant GATEWAY_APP_ID = keccak256("gateway-app-id");
    bytes32 private constant REGISTERED_APP = keccak256("registered-app");
    bytes32 private constant KMS_AGGREGATED_MR = keccak256("kms-aggregated-mr");
    bytes32 private constant KMS_DEVICE = keccak256("kms-device");
    bytes32 private constant OS_IMAGE = keccak256("os-image");

    /// @dev What an app's contract may use to answer; it bounds the memory that the answer can take, too.
    uint256 private constant APP_GAS = 1_000_000;

    /// @dev A longer answer is none.
    uint256 private constant MAX_ANSWER = 1024;

    /// @dev The three words before the text in an ABI-encoded (bool, string).
    uint256 private constant ANSWER_HEAD = 96;

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
    uint256[50] private __gap;

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
        gatewayAppId = gatewayAppId_;
        emit GatewayAppIdSet(gatewayAppId_);
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

    /// @inheritdoc IAppAuth
    /// @dev Gates, in this order: registered, OS image, code at the app's address, the app's own contract. That one is
    /// somebody else's code: it cannot write, its gas is bounded, and unless it answers in form the answer is no.
    function isAppAllowed(AppBootInfo calldata bootInfo)
        external
        view
        returns (bool isAllowed, string memory reason)
    {
        if (!registeredApps[bootInfo.appId]) return (false, "App not registered");
        if (!allowedOsImages[bootInfo.osImageHash]) return (false, "OS image is not allowed");
        if (bootInfo.appId.code.length == 0) return (false, "App not deployed or invalid address");

        (bool success, bytes memory answer) =
            bootInfo.appId.staticcall{gas: APP_GAS}(abi.encodeCall(IAppAuth.isAppAllowed, (bootInfo)));
        if (!success || !_isAnswer(answer)) return (false, "App contract did not answer");
        return abi.decode(answer, (bool, string));
    }

    /// @notice ERC-165 itself and IAppAuth.
    function supportsInterface(bytes4 interfaceId) public view override returns (bool) {
        return interfaceId == type(IAppAuth).interfaceId || super.supportsInterface(interfaceId);
    }

    function _announceKmsInfo() private {
        emit PolicyChanged(msg.sender, KMS_INFO, keccak256(abi.encode(kmsInfo)), true);
    }

    function _setAppImplementation(address implementation) private {
        _refuseZero(APP_IMPLEMENTATION, _word(implementation));
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
        _registerApp(appId);
        emit AppDeployedViaFactory(appId, msg.sender);
    }

    /// @dev Whether `answer` is short and cannot fail to decode as (bool, string) in the usual layout.
    function _isAnswer(bytes memory answer) private pure returns (bool) {
        if (answer.length < ANSWER_HEAD || answer.length > MAX_ANSWER) return false;
        (uint256 isAllowed, uint256 offset, uint256 length) = abi.decode(answer, (uint256, uint256, uint256));
        return isAllowed <= 1 && offset == 64 && length <= answer.length - ANSWER_HEAD;
    }
}
