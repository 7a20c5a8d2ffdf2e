// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {AppAuth} from "../../../contracts/AppAuth.sol";
import {KmsAuth} from "../../../contracts/KmsAuth.sol";
import {UpgradeOperator} from "../../../contracts/UpgradeOperator.sol";
import {IAppAuthBasicManagement, IAppAuthPolicy} from "../../../contracts/interfaces/IAppAuth.sol";
import {IGoverned} from "../../../contracts/interfaces/IGoverned.sol";
import {IKmsAuth} from "../../../contracts/interfaces/IKmsAuth.sol";
import {IUpgradeOperator} from "../../../contracts/interfaces/IUpgradeOperator.sol";
import {Vm} from "./Forge.sol";

/// @title P18: the state of three contracts as an indexer has it, who sees their events and nothing else.
contract Replay {
    bytes32 private constant OWNERSHIP_TRANSFERRED = keccak256("OwnershipTransferred(address,address)");
    bytes32 private constant UPGRADED = keccak256("Upgraded(address)");
    bytes32 private constant IMPLEMENTATION_SLOT = 0x360894a13ba1a3210667c828492db98dca3e2076cc3735a920a3ca505d382bbc;
    Vm private constant vm = Vm(0x7109709ECfa91a80626fF3989D68f67F5b1DD12D);

    /// @dev What the events say of a proposal.
    struct Seen {
        bytes32 id;
        uint256 nonce;
        uint256 readyAt;
        uint256 expiresAt;
        bytes content;
        bool executed;
        bool cancelled;
        bool rolledBack;
    }

    UpgradeOperator private immutable _operator;
    KmsAuth private immutable _kms;
    AppAuth private immutable _app;

    Seen[] private _seen;
    mapping(bytes32 id => uint256 place) private _placeOf;
    mapping(address => address) private _ownerOf;
    mapping(address => address) private _implementationOf;
    mapping(address => bool) private _upgradesDisabled;
    address private _guardian;
    uint256[3] private _delays;

    mapping(bytes32 topic => mapping(bytes32 value => bool)) private _listed;
    bytes32[] private _values;
    bool private _anyDevice;
    bool private _requireTcb;
    uint64 private _toleratedUntil;
    bool private _frozenForGood;
    uint64[] private _numbers;
    mapping(uint64 number => uint64) private _endOf;
    mapping(bytes32 pair => uint64) private _versionOf;
    mapping(bytes32 composeHash => uint64) private _removedUpTo;
    bytes32[2][] private _pairs;
    uint64 private _frozenUntil;
    string private _gateway;
    address private _appImplementation;
    bytes32 private _kmsInfo = keccak256(abi.encode("", "", "", ""));
    uint64[3] private _keyEpoch;
    bytes32[2] private _genesis;

    constructor(UpgradeOperator operator, KmsAuth kms, AppAuth app) {
        (_operator, _kms, _app) = (operator, kms, app);
    }

    function fold(Vm.Log[] calldata logs) external {
        for (uint256 i = 0; i < logs.length; i++) {
            address emitter = logs[i].emitter;
            if (emitter != address(_operator) && emitter != address(_kms) && emitter != address(_app)) continue;
            _foldCommon(logs[i]);
            if (emitter == address(_operator)) _foldOperator(logs[i]);
            if (emitter == address(_kms)) _foldKms(logs[i]);
            if (emitter == address(_app)) _foldApp(logs[i]);
        }
    }

    /// @dev Whether storage, asked through the views, is what the events say.
    function agrees() external view returns (bool) {
        return operatorAgrees() && listsAgree() && valuesAgree() && versionsAgree();
    }

    function operatorAgrees() public view returns (bool) {
        (uint48 policy, uint48 roles, uint48 upgrades) = _operator.delays();
        if (policy != _delays[0] || roles != _delays[1] || upgrades != _delays[2]) return false;
        if (_operator.guardian() != _guardian || _operator.owner() != _ownerOf[address(_operator)]) return false;
        (bytes32 fingerprint, bytes32 evidence,,) = _operator.genesisOf(address(_app));
        if (fingerprint != _genesis[0] || evidence != _genesis[1]) return false;
        if (_operator.proposalCount() != _seen.length) return false;
        for (uint256 i = 0; i < _seen.length; i++) {
            if (_operator.stateOf(_seen[i].id) != _stateOf(_seen[i]) || _seen[i].nonce != i) return false;
            bytes memory head = abi.encode(block.chainid, address(_operator), i, uint256(128));
            if (_seen[i].id != keccak256(abi.encodePacked(head, _seen[i].content))) return false;
        }
        return true;
    }

    function listsAgree() public view returns (bool) {
        for (uint256 i = 0; i < _values.length; i++) {
            bytes32 value = _values[i];
            if (_app.allowedComposeHashes(value) != _listed["compose"][value]) return false;
            if (_app.allowedDeviceIds(value) != _listed["device"][value]) return false;
            if (_kms.allowedOsImages(value) != _listed["image"][value]) return false;
            if (_kms.kmsAllowedAggregatedMrs(value) != _listed["mr"][value]) return false;
            if (_kms.kmsAllowedDeviceIds(value) != _listed["kms device"][value]) return false;
        }
        return true;
    }

    function valuesAgree() public view returns (bool) {
        return _app.allowAnyDevice() == _anyDevice && _app.requireTcbUpToDate() == _requireTcb
            && _app.outdatedTcbToleratedUntil() == _toleratedUntil && _app.frozenForGood() == _frozenForGood
            && _app.upgradesDisabled() == _upgradesDisabled[address(_app)]
            && _kms.upgradesDisabled() == _upgradesDisabled[address(_kms)]
            && _kms.frozenUntil(address(_app)) == _frozenUntil
            && keccak256(bytes(_kms.gatewayAppId())) == keccak256(bytes(_gateway))
            && _kms.appImplementation() == _appImplementation && _app.owner() == _ownerOf[address(_app)]
            && _kms.owner() == _ownerOf[address(_kms)] && _runs(address(_app)) && _runs(address(_kms)) && _kmsAgrees();
    }

    function _kmsAgrees() private view returns (bool) {
        (bytes memory k256, bytes memory ca, bytes memory quote, bytes memory eventlog) = _kms.kmsInfo();
        (uint64 current, uint64 previous, uint64 until) = _kms.keyEpoch();
        return keccak256(abi.encode(k256, ca, quote, eventlog)) == _kmsInfo
            && current == _keyEpoch[0] && previous == _keyEpoch[1] && until == _keyEpoch[2];
    }

    function versionsAgree() public view returns (bool) {
        uint256 count = _numbers.length;
        if (_app.newestVersion() != (count == 0 ? 0 : _numbers[count - 1])) return false;
        for (uint256 i = 0; i < count; i++) {
            IAppAuthPolicy.VersionRecord memory record = _app.versionRecord(_numbers[i]);
            if (record.endsAt != _endOf[_numbers[i]] || record.addedAt == 0) return false;
            if (record.previous != (i == 0 ? 0 : _numbers[i - 1])) return false;
        }
        for (uint256 i = 0; i < _pairs.length; i++) {
            (bytes32 composeHash, bytes32 osImageHash) = (_pairs[i][0], _pairs[i][1]);
            bool allowed = _app.isConfigurationAllowed(composeHash, osImageHash, block.timestamp);
            if (allowed != _isAllowed(composeHash, osImageHash)) return false;
        }
        return true;
    }

    function _foldCommon(Vm.Log calldata log) private {
        bytes32 topic = log.topics[0];
        if (topic == OWNERSHIP_TRANSFERRED) _ownerOf[log.emitter] = _address(log.topics[2]);
        if (topic == UPGRADED) _implementationOf[log.emitter] = _address(log.topics[1]);
        if (topic == IGoverned.UpgradesDisabled.selector) _upgradesDisabled[log.emitter] = true;
    }

    function _foldOperator(Vm.Log calldata log) private {
        bytes32 topic = log.topics[0];
        if (topic == IUpgradeOperator.ProposalQueued.selector) _foldProposal(log.topics[1], log.data);
        if (topic == IUpgradeOperator.ProposalExecuted.selector) _proposal(log.topics[1]).executed = true;
        if (topic == IUpgradeOperator.ProposalCancelled.selector) _proposal(log.topics[1]).cancelled = true;
        if (topic == IUpgradeOperator.ProposalRolledBack.selector) _proposal(log.topics[1]).rolledBack = true;
        if (topic == IUpgradeOperator.GenesisRecorded.selector && _address(log.topics[1]) == address(_app)) {
            _genesis = abi.decode(log.data, (bytes32[2]));
        }
        if (topic == IUpgradeOperator.GuardianChanged.selector) _guardian = _address(log.topics[2]);
        if (topic == IUpgradeOperator.DelayChanged.selector) {
            (uint256 class,, uint256 current) = abi.decode(log.data, (uint256, uint256, uint256));
            _delays[class] = current;
        }
    }

    /// @dev `data` is four words (nonce, times, the offset of the content) and then the content.
    function _foldProposal(bytes32 id, bytes calldata data) private {
        (uint256 nonce, uint256 readyAt, uint256 expiresAt) = abi.decode(data, (uint256, uint256, uint256));
        _seen.push(Seen(id, nonce, readyAt, expiresAt, data[128:], false, false, false));
        _placeOf[id] = _seen.length;
    }

    function _foldKms(Vm.Log calldata log) private {
        bytes32 topic = log.topics[0];
        if (topic == IKmsAuth.OsImageHashAdded.selector) _list("image", log.data, true);
        if (topic == IKmsAuth.OsImageHashRemoved.selector) _list("image", log.data, false);
        if (topic == IKmsAuth.KmsAggregatedMrAdded.selector) _list("mr", log.data, true);
        if (topic == IKmsAuth.KmsAggregatedMrRemoved.selector) _list("mr", log.data, false);
        if (topic == IKmsAuth.KmsDeviceAdded.selector) _list("kms device", log.data, true);
        if (topic == IKmsAuth.KmsDeviceRemoved.selector) _list("kms device", log.data, false);
        if (topic == IKmsAuth.GatewayAppIdSet.selector) _gateway = abi.decode(log.data, (string));
        if (topic == IKmsAuth.AppImplementationSet.selector) _appImplementation = abi.decode(log.data, (address));
        if (topic == IKmsAuth.AppFrozen.selector) (,, _frozenUntil) = abi.decode(log.data, (address, uint64, uint64));
        if (topic == IKmsAuth.KmsInfoPublished.selector) {
            IKmsAuth.KmsInfo memory info = abi.decode(log.data, (IKmsAuth.KmsInfo));
            _kmsInfo = keccak256(abi.encode(info.k256Pubkey, info.caPubkey, info.quote, info.eventlog));
        }
        if (topic == IKmsAuth.KeyEpochBegan.selector) {
            (_keyEpoch[1], _keyEpoch[0], _keyEpoch[2]) = abi.decode(log.data, (uint64, uint64, uint64));
        }
        if (topic == IKmsAuth.AppUnfrozen.selector && block.timestamp < _frozenUntil) {
            _frozenUntil = uint64(block.timestamp);
        }
    }

    function _foldApp(Vm.Log calldata log) private {
        bytes32 topic = log.topics[0];
        if (topic == IAppAuthBasicManagement.ComposeHashAdded.selector) _list("compose", log.data, true);
        if (topic == IAppAuthBasicManagement.ComposeHashRemoved.selector) _list("compose", log.data, false);
        if (topic == IAppAuthBasicManagement.DeviceAdded.selector) _list("device", log.data, true);
        if (topic == IAppAuthBasicManagement.DeviceRemoved.selector) _list("device", log.data, false);
        if (topic == IAppAuthPolicy.AllowAnyDeviceSet.selector) _anyDevice = abi.decode(log.data, (bool));
        if (topic == IAppAuthPolicy.RequireTcbUpToDateSet.selector) _requireTcb = abi.decode(log.data, (bool));
        if (topic == IAppAuthPolicy.OutdatedTcbToleratedUntil.selector) {
            _toleratedUntil = abi.decode(log.data, (uint64));
        }
        if (topic == IAppAuthPolicy.AppFrozenForGood.selector) _frozenForGood = true;
        if (topic == IAppAuthPolicy.VersionAdded.selector) _foldVersion(log.data);
        if (topic == IAppAuthPolicy.VersionEndSet.selector) {
            (uint64 number,, uint64 endsAt) = abi.decode(log.data, (uint64, uint64, uint64));
            _endOf[number] = endsAt;
        }
        if (topic == IAppAuthPolicy.VersionsRemoved.selector) {
            (bytes32 composeHash, uint64 newest) = abi.decode(log.data, (bytes32, uint64));
            _removedUpTo[composeHash] = newest;
        }
    }

    function _foldVersion(bytes calldata data) private {
        IAppAuthPolicy.Version memory version = abi.decode(data, (IAppAuthPolicy.Version));
        _numbers.push(version.number);
        for (uint256 i = 0; i < version.osImageHashes.length; i++) {
            bytes32[2] memory pair = [version.composeHash, version.osImageHashes[i]];
            _pairs.push(pair);
            _versionOf[keccak256(abi.encode(pair))] = version.number;
        }
    }

    function _list(bytes32 topic, bytes calldata data, bool enabled) private {
        bytes32 value = abi.decode(data, (bytes32));
        if (!_listed["any"][value]) _values.push(value);
        _listed["any"][value] = true;
        _listed[topic][value] = enabled;
    }

    function _proposal(bytes32 id) private view returns (Seen storage) {
        return _seen[_placeOf[id] - 1];
    }

    function _stateOf(Seen storage seen) private view returns (IUpgradeOperator.State) {
        if (seen.rolledBack) return IUpgradeOperator.State.RolledBack;
        if (seen.executed) return IUpgradeOperator.State.Executed;
        if (seen.cancelled) return IUpgradeOperator.State.Cancelled;
        if (block.timestamp < seen.readyAt) return IUpgradeOperator.State.Waiting;
        return block.timestamp < seen.expiresAt ? IUpgradeOperator.State.Ready : IUpgradeOperator.State.Expired;
    }

    function _isAllowed(bytes32 composeHash, bytes32 osImageHash) private view returns (bool) {
        uint64 number = _versionOf[keccak256(abi.encode([composeHash, osImageHash]))];
        if (_listed["compose"][composeHash]) return true;
        if (number == 0 || number <= _removedUpTo[composeHash]) return false;
        return _endOf[number] == 0 || block.timestamp < _endOf[number];
    }

    function _runs(address proxy) private view returns (bool) {
        return _address(vm.load(proxy, IMPLEMENTATION_SLOT)) == _implementationOf[proxy];
    }

    function _address(bytes32 word) private pure returns (address) {
        return address(uint160(uint256(word)));
    }
}
