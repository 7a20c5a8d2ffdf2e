// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {Governed} from "./Governed.sol";
import {IAppAuth, IAppAuthBasicManagement, IAppAuthPolicy} from "./interfaces/IAppAuth.sol";

/// @title One app's own gate; the words are in IAppAuthPolicy.
contract AppAuth is IAppAuthPolicy, Governed {
    bytes32 private constant COMPOSE_HASH = keccak256("compose-hash");
    bytes32 private constant DEVICE = keccak256("device");
    bytes32 private constant ALLOW_ANY_DEVICE = keccak256("allow-any-device");
    bytes32 private constant REQUIRE_TCB_UP_TO_DATE = keccak256("require-tcb-up-to-date");
    bytes32 private constant UPGRADES_DISABLED = keccak256("upgrades-disabled");

    // The order is dstack's; new state is taken from the gap.

    /// @inheritdoc IAppAuthPolicy
    mapping(bytes32 composeHash => bool) public allowedComposeHashes;
    bool private _upgradesDisabled;
    /// @inheritdoc IAppAuthPolicy
    bool public allowAnyDevice;
    /// @inheritdoc IAppAuthPolicy
    mapping(bytes32 deviceId => bool) public allowedDeviceIds;
    /// @inheritdoc IAppAuthPolicy
    bool public requireTcbUpToDate;
    uint256[49] private __gap;

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
    function addComposeHash(bytes32 composeHash) external onlyOwner {
        _addComposeHash(composeHash);
    }

    /// @inheritdoc IAppAuthBasicManagement
    function removeComposeHash(bytes32 composeHash) external onlyOwner {
        allowedComposeHashes[composeHash] = false;
        emit ComposeHashRemoved(composeHash);
        emit PolicyChanged(msg.sender, COMPOSE_HASH, composeHash, false);
    }

    /// @inheritdoc IAppAuthBasicManagement
    function addDevice(bytes32 deviceId) external onlyOwner {
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
        _setAllowAnyDevice(allowAny);
    }

    /// @inheritdoc IAppAuthPolicy
    function setRequireTcbUpToDate(bool requireUpToDate) external onlyOwner {
        _setRequireTcbUpToDate(requireUpToDate);
    }

    /// @inheritdoc IAppAuthPolicy
    function disableUpgrades() external onlyOwner {
        _disableUpgrades();
    }

    /// @inheritdoc IAppAuth
    function isAppAllowed(AppBootInfo calldata bootInfo)
        external
        view
        returns (bool isAllowed, string memory reason)
    {
        if (requireTcbUpToDate && !_isUpToDate(bootInfo.tcbStatus)) {
            return (false, "TCB status is not up to date");
        }
        if (!allowedComposeHashes[bootInfo.composeHash]) {
            return (false, "Compose hash not allowed");
        }
        if (!allowAnyDevice && !allowedDeviceIds[bootInfo.deviceId]) {
            return (false, "Device not allowed");
        }
        return (true, "");
    }

    /// @inheritdoc IAppAuthPolicy
    function version() external pure returns (uint256) {
        return 2;
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
        allowAnyDevice = allowAny;
        emit AllowAnyDeviceSet(allowAny);
        emit PolicyChanged(msg.sender, ALLOW_ANY_DEVICE, 0, allowAny);
    }

    function _setRequireTcbUpToDate(bool requireUpToDate) private {
        requireTcbUpToDate = requireUpToDate;
        emit RequireTcbUpToDateSet(requireUpToDate);
        emit PolicyChanged(msg.sender, REQUIRE_TCB_UP_TO_DATE, 0, requireUpToDate);
    }

    function _disableUpgrades() private {
        _upgradesDisabled = true;
        emit UpgradesDisabled();
        emit PolicyChanged(msg.sender, UPGRADES_DISABLED, 0, true);
    }

    /// @dev Owner only, and only as long as upgrades were not disabled.
    function _authorizeUpgrade(address implementation) internal override {
        super._authorizeUpgrade(implementation);
        require(!_upgradesDisabled, "Upgrades are permanently disabled");
    }
}
