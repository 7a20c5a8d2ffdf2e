// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {IAppAuthPolicy} from "./interfaces/IAppAuth.sol";
import {IUpgradeOperator} from "./interfaces/IUpgradeOperator.sol";

/// @title What follows from an action by itself: its form, its class, its subject; the words are in IUpgradeOperator.
library Actions {
    uint256 private constant WORD = 32;
    uint256 private constant TWO_WORDS = 64;
    bytes32 private constant ON = bytes32(uint256(1));

    /// @dev Where the compose hash of an encoded version stands: behind the offset and the number.
    uint256 private constant VERSION_HASH = 64;

    /// @dev Fails unless the action can be proposed.
    function checkGrant(IUpgradeOperator.Action calldata action) internal view {
        require(action.kind != IUpgradeOperator.Kind.ContractUpgrades, IUpgradeOperator.NotGrantable(action.kind));
        require(_isGrant(action), IUpgradeOperator.DataMalformed(action.kind, action.data));
    }

    /// @dev Fails unless the action can be denied.
    function checkDenial(IUpgradeOperator.Action calldata action) internal pure {
        require(_isDeniable(action.kind), IUpgradeOperator.NotDeniable(action.kind));
        require(_isDenial(action), IUpgradeOperator.DataMalformed(action.kind, action.data));
    }

    /// @dev Whether the action changes the operator itself.
    function isOwn(IUpgradeOperator.Kind kind) internal pure returns (bool) {
        return kind == IUpgradeOperator.Kind.Guardian || kind == IUpgradeOperator.Kind.Owner
            || kind == IUpgradeOperator.Kind.Delay;
    }

    /// @dev How long the action must wait.
    function classOf(IUpgradeOperator.Action calldata action) internal pure returns (IUpgradeOperator.DelayClass) {
        IUpgradeOperator.Kind kind = action.kind;
        if (kind == IUpgradeOperator.Kind.Delay) return IUpgradeOperator.DelayClass(uint256(bytes32(action.data)));
        if (kind == IUpgradeOperator.Kind.Owner || kind == IUpgradeOperator.Kind.Guardian) {
            return IUpgradeOperator.DelayClass.Roles;
        }
        if (
            kind == IUpgradeOperator.Kind.ImplementationUpgrade || kind == IUpgradeOperator.Kind.AppImplementation
                || kind == IUpgradeOperator.Kind.FreezeForGood
        ) return IUpgradeOperator.DelayClass.Upgrades;
        return IUpgradeOperator.DelayClass.Policy;
    }

    /// @dev The account that the data names; zero where the kind names none.
    function accountOf(IUpgradeOperator.Action calldata action) internal pure returns (address) {
        return _namesAccount(action.kind) ? address(uint160(uint256(bytes32(action.data)))) : address(0);
    }

    /// @dev What denials of this action and of all that would have the same effect share.
    function subjectOf(IUpgradeOperator.Action calldata action)
        internal
        pure
        returns (IUpgradeOperator.Kind kind, bytes32 subject)
    {
        if (action.kind == IUpgradeOperator.Kind.Version) {
            return (IUpgradeOperator.Kind.ComposeHash, bytes32(action.data[VERSION_HASH:]));
        }
        if (action.kind == IUpgradeOperator.Kind.OutdatedTcb) return (action.kind, 0);
        return (action.kind, bytes32(action.data));
    }

    function _isGrant(IUpgradeOperator.Action calldata action) private view returns (bool) {
        (IUpgradeOperator.Kind kind, bytes calldata data) = (action.kind, action.data);
        if (kind == IUpgradeOperator.Kind.Version) return _isVersion(action);
        if (kind == IUpgradeOperator.Kind.Sunset) return _isSunset(data);
        if (kind == IUpgradeOperator.Kind.Delay) return _isDelay(data);
        if (data.length != WORD || bytes32(data) == 0) return false;
        if (kind == IUpgradeOperator.Kind.OutdatedTcb) return _isTime(bytes32(data));
        if (kind == IUpgradeOperator.Kind.AnyDevice || kind == IUpgradeOperator.Kind.FreezeForGood) {
            return bytes32(data) == ON;
        }
        if (!_namesAccount(kind)) return true;
        return uint256(bytes32(data)) <= type(uint160).max && (!_namesCode(kind) || accountOf(action).code.length > 0);
    }

    function _isDenial(IUpgradeOperator.Action calldata action) private pure returns (bool) {
        (IUpgradeOperator.Kind kind, bytes calldata data) = (action.kind, action.data);
        if (kind == IUpgradeOperator.Kind.Sunset) return _isSunset(data);
        if (data.length != WORD || bytes32(data) == 0) return false;
        if (kind == IUpgradeOperator.Kind.App) return uint256(bytes32(data)) <= type(uint160).max;
        return !_isSwitch(kind) || bytes32(data) == ON;
    }

    function _isDeniable(IUpgradeOperator.Kind kind) private pure returns (bool) {
        return kind <= IUpgradeOperator.Kind.KmsDevice || kind == IUpgradeOperator.Kind.ContractUpgrades
            || kind == IUpgradeOperator.Kind.Sunset || kind == IUpgradeOperator.Kind.App;
    }

    function _isSwitch(IUpgradeOperator.Kind kind) private pure returns (bool) {
        return kind == IUpgradeOperator.Kind.AnyDevice || kind == IUpgradeOperator.Kind.OutdatedTcb
            || kind == IUpgradeOperator.Kind.ContractUpgrades;
    }

    function _namesAccount(IUpgradeOperator.Kind kind) private pure returns (bool) {
        return _namesCode(kind) || kind == IUpgradeOperator.Kind.GatewayAppId
            || kind == IUpgradeOperator.Kind.Guardian || kind == IUpgradeOperator.Kind.Owner
            || kind == IUpgradeOperator.Kind.App || kind == IUpgradeOperator.Kind.FreezeRenewal;
    }

    function _namesCode(IUpgradeOperator.Kind kind) private pure returns (bool) {
        return kind == IUpgradeOperator.Kind.AppImplementation
            || kind == IUpgradeOperator.Kind.ImplementationUpgrade;
    }

    /// @dev Exactly the ABI encoding of a version, so that one content has one encoding; the app says what else it wants.
    function _isVersion(IUpgradeOperator.Action calldata action) private pure returns (bool) {
        IAppAuthPolicy.Version memory version = abi.decode(action.data, (IAppAuthPolicy.Version));
        IAppAuthPolicy(action.target).checkVersion(version);
        return keccak256(abi.encode(version)) == keccak256(action.data);
    }

    function _isSunset(bytes calldata data) private pure returns (bool) {
        if (data.length != TWO_WORDS || bytes32(data) == 0) return false;
        return _isTime(bytes32(data)) && _isTime(bytes32(data[WORD:]));
    }

    function _isDelay(bytes calldata data) private pure returns (bool) {
        if (data.length != TWO_WORDS) return false;
        return uint256(bytes32(data)) <= uint256(type(IUpgradeOperator.DelayClass).max) && _isTime(bytes32(data[WORD:]));
    }

    /// @dev Versions are numbered, and times counted, in 64 bits.
    function _isTime(bytes32 value) private pure returns (bool) {
        return uint256(value) <= type(uint64).max;
    }
}
