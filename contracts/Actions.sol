// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {Address} from "@openzeppelin/contracts/utils/Address.sol";
import {IAppAuthPolicy} from "./interfaces/IAppAuth.sol";
import {MAX_EPOCH_WINDOW, MIN_EPOCH_WINDOW} from "./interfaces/IKmsAuth.sol";
import {IUpgradeOperator} from "./interfaces/IUpgradeOperator.sol";

/// @title What follows from an action by itself: its form, its class, its subject; the words are in IUpgradeOperator.
library Actions {
    uint256 private constant WORD = 32;
    uint256 private constant TWO_WORDS = 64;
    bytes32 private constant ON = bytes32(uint256(1));

    /// @dev Sets of kinds, one bit each.
    uint256 private constant ROLES = (1 << uint256(IUpgradeOperator.Kind.Owner))
        | (1 << uint256(IUpgradeOperator.Kind.Guardian)) | (1 << uint256(IUpgradeOperator.Kind.ForcedGuardian));
    uint256 private constant OWN = ROLES | (1 << uint256(IUpgradeOperator.Kind.Delay));
    uint256 private constant NAME_CODE = (1 << uint256(IUpgradeOperator.Kind.AppImplementation))
        | (1 << uint256(IUpgradeOperator.Kind.ImplementationUpgrade));
    uint256 private constant NAME_ACCOUNT = NAME_CODE | ROLES | (1 << uint256(IUpgradeOperator.Kind.GatewayAppId))
        | (1 << uint256(IUpgradeOperator.Kind.App)) | (1 << uint256(IUpgradeOperator.Kind.FreezeRenewal));
    uint256 private constant WAIT_LONGEST = NAME_CODE | (1 << uint256(IUpgradeOperator.Kind.FreezeForGood))
        | (1 << uint256(IUpgradeOperator.Kind.KeyEpoch));

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
        return _isIn(kind, OWN);
    }

    /// @dev How long the action must wait.
    function classOf(IUpgradeOperator.Action calldata action) internal pure returns (IUpgradeOperator.DelayClass) {
        IUpgradeOperator.Kind kind = action.kind;
        if (kind == IUpgradeOperator.Kind.Delay) return IUpgradeOperator.DelayClass(uint256(bytes32(action.data)));
        if (_isIn(kind, ROLES)) return IUpgradeOperator.DelayClass.Roles;
        return _isIn(kind, WAIT_LONGEST) ? IUpgradeOperator.DelayClass.Upgrades : IUpgradeOperator.DelayClass.Policy;
    }

    /// @dev The account that the data names; zero where the kind names none.
    function accountOf(IUpgradeOperator.Action calldata action) internal pure returns (address) {
        return _isIn(action.kind, NAME_ACCOUNT) ? address(uint160(uint256(bytes32(action.data)))) : address(0);
    }

    /// @dev What denials of this action and of all that would have the same effect share.
    function subjectOf(IUpgradeOperator.Action calldata action)
        internal
        pure
        returns (IUpgradeOperator.Kind kind, bytes32 subject)
    {
        (kind, subject) = (action.kind, bytes32(action.data));
        if (kind == IUpgradeOperator.Kind.Version) {
            require(action.data.length > VERSION_HASH, IUpgradeOperator.DataMalformed(kind, action.data));
            return (IUpgradeOperator.Kind.ComposeHash, bytes32(action.data[VERSION_HASH:]));
        }
        if (kind == IUpgradeOperator.Kind.OutdatedTcb) subject = 0;
    }

    function _isGrant(IUpgradeOperator.Action calldata action) private view returns (bool) {
        (IUpgradeOperator.Kind kind, bytes calldata data) = (action.kind, action.data);
        if (kind == IUpgradeOperator.Kind.Version) return _isVersion(action);
        if (kind == IUpgradeOperator.Kind.KmsInfo) return _isEncoded(action);
        if (kind == IUpgradeOperator.Kind.Sunset) return _isSunset(data);
        if (kind == IUpgradeOperator.Kind.Delay) return _isDelay(data);
        if (kind == IUpgradeOperator.Kind.KeyEpoch) return _isKeyEpoch(data);
        if (kind == IUpgradeOperator.Kind.Genesis) return _isGenesis(data);
        if (data.length != WORD || bytes32(data) == 0) return false;
        if (kind == IUpgradeOperator.Kind.OutdatedTcb) return _isTime(bytes32(data));
        if (kind == IUpgradeOperator.Kind.AnyDevice || kind == IUpgradeOperator.Kind.FreezeForGood) {
            return bytes32(data) == ON;
        }
        if (!_isIn(kind, NAME_ACCOUNT)) return true;
        if (uint256(bytes32(data)) > type(uint160).max) return false;
        return !_isIn(kind, NAME_CODE) || accountOf(action).code.length > 0;
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

    function _isIn(IUpgradeOperator.Kind kind, uint256 set) private pure returns (bool) {
        return (set >> uint256(kind)) & 1 == 1;
    }

    /// @dev The app says what else it wants of a version.
    function _isVersion(IUpgradeOperator.Action calldata action) private view returns (bool) {
        if (!_isEncoded(action)) return false;
        Address.functionStaticCall(
            action.target, bytes.concat(IAppAuthPolicy.checkVersion.selector, action.data)
        );
        return true;
    }

    /// @dev Decoded by a call of its own, for what cannot be decoded fails without a word.
    function _isEncoded(IUpgradeOperator.Action calldata action) private view returns (bool) {
        try IUpgradeOperator(address(this)).encodingOf(action.kind, action.data) returns (bytes memory encoding) {
            return keccak256(encoding) == keccak256(action.data);
        } catch {
            return false;
        }
    }

    /// @dev How long the previous epoch may be served is for KmsAuth to bound, but looked at before anybody waits.
    function _isKeyEpoch(bytes calldata data) private pure returns (bool) {
        if (data.length != TWO_WORDS || bytes32(data) == 0) return false;
        uint256 window = uint256(bytes32(data[WORD:]));
        return _isTime(bytes32(data)) && window >= MIN_EPOCH_WINDOW && window <= MAX_EPOCH_WINDOW;
    }

    function _isGenesis(bytes calldata data) private pure returns (bool) {
        return data.length == TWO_WORDS && bytes32(data) != 0 && bytes32(data[WORD:]) != 0;
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
