// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {AppAuth} from "../../../contracts/AppAuth.sol";
import {KmsAuth} from "../../../contracts/KmsAuth.sol";
import {IAppAuthPolicy} from "../../../contracts/interfaces/IAppAuth.sol";
import {IKmsAuth} from "../../../contracts/interfaces/IKmsAuth.sol";
import {IUpgradeOperator} from "../../../contracts/interfaces/IUpgradeOperator.sol";
import {Replay} from "./Replay.sol";
import {World} from "./World.sol";

/// @title Everything that anybody may try, with a record of its own of what must follow.
/// @dev What it finds wrong it counts under the number of the property; the invariants want every count to be zero.
contract Handler is World {
    /// @dev What this contract remembers of a proposal, by its own reckoning.
    struct Ghost {
        bytes32 id;
        uint256 proposedAt;
        uint256 readyAt;
        uint256 executedAt;
        bool cancelled;
        bool rolledBack;
        bool forced;
        address agreedBy;
        bytes content;
    }

    /// @dev The things that may be allowed or not; those from `CONFIGURATION` on are compose hash x OS image.
    uint256 private constant FACTS = 18;
    uint256 private constant CONFIGURATION = 11;
    uint256 private constant UNFROZEN = 17;

    /// @dev The single values, and which steps may change them.
    uint256 private constant SETTINGS = 11;
    uint256 private constant NONE = 0;
    uint256 private constant ROLES = 1;
    uint256 private constant CONTENT = 2;
    uint256 private constant TIME = 4;
    uint256 private constant DENIAL = 8;

    /// @dev How many kinds of actions there are.
    uint256 private constant KINDS = uint256(type(IUpgradeOperator.Kind).max) + 1;

    bytes32 private constant IMPLEMENTATION_SLOT = 0x360894a13ba1a3210667c828492db98dca3e2076cc3735a920a3ca505d382bbc;

    /// @dev What is counted besides the properties with a number: a genesis replaced, an epoch left out or gone back.
    uint256 public constant GENESIS = 101;
    uint256 public constant EPOCH = 102;

    Replay public immutable replay;
    mapping(uint256 property => uint256) public violations;
    mapping(string verb => uint256) public successes;

    bool private _succeeded;
    Ghost[] private _ghosts;
    mapping(bytes32 id => bool) private _known;
    mapping(bytes32 subject => uint256 time) private _deniedAt;
    uint256[3] private _delays;
    address[2] private _nominee;
    uint256[2] private _nomineeUntil;
    uint256 private _lastFreezeEnd;
    uint64 private _newestVersion;
    address private immutable _nextApp;
    address private immutable _nextKms;

    constructor(uint48 policy, uint48 roles, uint48 upgrades) {
        vm.recordLogs();
        _build(policy, roles, upgrades);
        _delays = [uint256(policy), roles, upgrades];
        _nextApp = address(new AppAuth());
        _nextKms = address(new KmsAuth());
        replay = new Replay(operator, kms, app);
        replay.fold(vm.getRecordedLogs());
    }

    // Steps. Every one may be tried by everybody, at any time, with any of the values below.

    function propose(uint256 first, uint256 second, uint256 undo, uint256 who) external {
        (bool[FACTS] memory facts, bytes32[SETTINGS] memory settings) = _begin();
        address by = _actor(who);
        IUpgradeOperator.Content memory content = _anyContent(first, second, undo);
        vm.prank(by);
        try operator.propose(content) returns (bytes32 id) {
            _expect(9, by == operator.owner());
            _expect(6, !_known[id]);
            _expect(9, !_anyForced(content) || content.actions.length + content.rollback.length == 1);
            _remember(id, content);
            _succeed("propose");
        } catch {}
        _end(facts, settings, NONE, "");
    }

    function cancel(uint256 which, uint256 who) external {
        if (_ghosts.length == 0) return;
        (bool[FACTS] memory facts, bytes32[SETTINGS] memory settings) = _begin();
        Ghost storage ghost = _pick(which);
        address by = _actor(who);
        bool pending = _isPending(ghost);
        bool may = ghost.forced ? by == operator.owner() : _isOwnerOrGuardian(by);
        vm.prank(by);
        try operator.cancel(ghost.id) {
            _expect(9, may);
            _expect(5, pending);
            ghost.cancelled = true;
            _succeed("cancel");
        } catch {
            _expect(9, !(pending && may));
        }
        _end(facts, settings, NONE, "");
    }

    function execute(uint256 which, uint256 who) external {
        if (_ghosts.length == 0) return;
        (bool[FACTS] memory facts, bytes32[SETTINGS] memory settings) = _begin();
        Ghost storage ghost = _pickIn(IUpgradeOperator.State.Ready, false, which);
        IUpgradeOperator.Content memory content = abi.decode(ghost.content, (IUpgradeOperator.Content));
        bytes memory inForce = "";
        vm.prank(_actor(who));
        try operator.execute(ghost.id, content) {
            _expect(1, block.timestamp >= ghost.proposedAt + 48 hours);
            _expect(3, block.timestamp >= ghost.readyAt);
            _expect(5, block.timestamp < ghost.readyAt + WINDOW);
            _expect(11, ghost.executedAt == 0 && !ghost.cancelled);
            ghost.executedAt = block.timestamp;
            _follow(content.actions, ghost.proposedAt);
            inForce = abi.encode(content.actions);
            _succeed("execute");
        } catch {}
        _end(facts, settings, CONTENT, inForce);
    }

    function deny(uint256 what, uint256 who) external {
        (bool[FACTS] memory facts, bytes32[SETTINGS] memory settings) = _begin();
        address by = _actor(who);
        IUpgradeOperator.Action memory action = _anyAction(what);
        vm.prank(by);
        try operator.deny(_list(action)) {
            _expect(9, _isOwnerOrGuardian(by));
            _expect(9, action.kind != IUpgradeOperator.Kind.ContractUpgrades || by == operator.owner());
            _deniedAt[_subject(action)] = block.timestamp;
            if (action.kind == IUpgradeOperator.Kind.App) _followFreeze(true);
            _succeed("deny");
        } catch {}
        _end(facts, settings, DENIAL, "");
    }

    function agreeToRollback(uint256 which, uint256 who) external {
        if (_ghosts.length == 0) return;
        (bool[FACTS] memory facts, bytes32[SETTINGS] memory settings) = _begin();
        Ghost storage ghost = _pickIn(IUpgradeOperator.State.Executed, false, which);
        address by = _actor(who);
        vm.prank(by);
        try operator.agreeToRollback(ghost.id) {
            _expect(27, _isOwnerOrGuardian(by));
            ghost.agreedBy = by;
            _succeed("agree");
        } catch {}
        _end(facts, settings, NONE, "");
    }

    function rollBack(uint256 which, uint256 who) external {
        if (_ghosts.length == 0) return;
        (bool[FACTS] memory facts, bytes32[SETTINGS] memory settings) = _begin();
        Ghost storage ghost = _pickIn(IUpgradeOperator.State.Executed, true, which);
        IUpgradeOperator.Content memory content = abi.decode(ghost.content, (IUpgradeOperator.Content));
        address other = ghost.agreedBy == operator.owner() ? operator.guardian() : operator.owner();
        address by = who % 3 > 0 ? other : _actor(who);
        bytes memory inForce = "";
        vm.prank(by);
        try operator.rollBack(ghost.id, content) {
            _expect(1, block.timestamp >= ghost.proposedAt + 48 hours);
            _expect(27, _isOwnerOrGuardian(by) && ghost.executedAt != 0 && !ghost.rolledBack);
            _expect(27, ghost.agreedBy != by || operator.owner() == operator.guardian());
            _expect(27, block.timestamp < ghost.executedAt + WINDOW);
            ghost.rolledBack = true;
            _follow(content.rollback, ghost.proposedAt);
            inForce = abi.encode(content.rollback);
            _succeed("rollBack");
        } catch {}
        _end(facts, settings, CONTENT, inForce);
    }

    function accept(bool asOwner, uint256 who) external {
        (bool[FACTS] memory facts, bytes32[SETTINGS] memory settings) = _begin();
        uint256 role = asOwner ? 0 : 1;
        address by = who % 3 == 0 || _nominee[role] == address(0) ? _actor(who) : _nominee[role];
        vm.prank(by);
        try this.acceptRole(asOwner, by) {
            _expect(8, by == _nominee[role] && block.timestamp < _nomineeUntil[role]);
            _nominee[role] = address(0);
            _succeed(asOwner ? "acceptOwnership" : "acceptGuardian");
        } catch {
            _expect(8, by != _nominee[role] || block.timestamp >= _nomineeUntil[role]);
        }
        _end(facts, settings, ROLES, "");
    }

    /// @dev The functions that nobody may call with success: past the operator, or out of its roles.
    function trespass(uint256 what, uint256 value, uint256 who) external {
        (bool[FACTS] memory facts, bytes32[SETTINGS] memory settings) = _begin();
        address by = _actor(who);
        (address target, bytes memory data) = _forbidden(what % 14, value, by);
        vm.prank(by);
        (bool done,) = target.call(data);
        _expect(9, !done);
        _end(facts, settings, NONE, "");
    }

    /// @dev Some seconds, some days, or to the edge of a proposal.
    function pass(uint256 how, uint256 which) external {
        (bool[FACTS] memory facts, bytes32[SETTINGS] memory settings) = _begin();
        uint256 to = block.timestamp + 1 + how % 3 hours;
        if (how % 4 == 1) to = block.timestamp + how % 5 days;
        if (how % 4 > 1 && _ghosts.length > 0) {
            uint256 edge = _pickIn(IUpgradeOperator.State.Waiting, false, which).readyAt + (how % 9 == 0 ? WINDOW : 0)
                + how % 3 - 1;
            if (edge > block.timestamp) to = edge;
        }
        vm.warp(to);
        _end(facts, settings, TIME, "");
    }

    /// @dev `accept` calls it through this contract, to catch what it reverts with.
    function acceptRole(bool asOwner, address by) external {
        vm.prank(by);
        if (asOwner) operator.acceptOwnership();
        else operator.acceptGuardian();
    }

    // What the invariants ask.

    /// @dev Every proposal stands where this contract's own reckoning says, and its times never moved.
    function statesAgree() external view returns (bool) {
        for (uint256 i = 0; i < _ghosts.length; i++) {
            IUpgradeOperator.Proposal memory record = operator.proposal(_ghosts[i].id);
            if (record.proposedAt != _ghosts[i].proposedAt || record.readyAt != _ghosts[i].readyAt) return false;
            if (operator.stateOf(_ghosts[i].id) != _stateOf(_ghosts[i])) return false;
        }
        return true;
    }

    /// @dev The page of all ids is the list of all proposals, in order.
    function pagesAgree() external view returns (bool) {
        bytes32[] memory page = operator.proposalIds(0, 100);
        if (operator.proposalCount() != _ghosts.length || page.length != _ghosts.length) return false;
        for (uint256 i = 0; i < page.length; i++) {
            if (page[i] != _ghosts[i].id) return false;
        }
        return true;
    }

    function delaysAgree() external view returns (bool) {
        (uint48 policy, uint48 roles, uint48 upgrades) = operator.delays();
        return policy == _delays[0] && roles == _delays[1] && upgrades == _delays[2];
    }

    function frozenTooLong() external view returns (bool) {
        return kms.frozenUntil(address(app)) > block.timestamp + 7 days;
    }

    // The record.

    function _begin() private returns (bool[FACTS] memory, bytes32[SETTINGS] memory) {
        _succeeded = false;
        vm.recordLogs();
        return (_facts(), _settings());
    }

    /// @dev What became allowed in this step must have been announced in `inForce`; what is a single value must not
    /// have changed unless this step is one that may change it.
    function _end(bool[FACTS] memory before, bytes32[SETTINGS] memory settings, uint256 step, bytes memory inForce)
        private
    {
        bool[FACTS] memory current = _facts();
        for (uint256 i = 0; i < FACTS; i++) {
            if (before[i] || !current[i]) continue;
            bool thawed = i == UNFROZEN && step == TIME;
            _expect(1, thawed || _isAnnounced(i, inForce));
        }
        bytes32[SETTINGS] memory now_ = _settings();
        for (uint256 i = 0; i < SETTINGS; i++) {
            if (settings[i] != now_[i]) _expect(i < 2 ? 8 : 17, _isSettingFor(i, step));
        }
        _expect(GENESIS, settings[8] == 0 || settings[8] == now_[8]);
        _expect(EPOCH, now_[9] == settings[9] || uint256(now_[9]) == uint256(settings[9]) + 1);
        uint64 newest = app.newestVersion();
        _expect(13, newest >= _newestVersion);
        _newestVersion = newest;
        // forge also records what a call logged that then failed.
        if (_succeeded) replay.fold(vm.getRecordedLogs());
    }

    function _succeed(string memory verb) private {
        _succeeded = true;
        successes[verb]++;
    }

    function _expect(uint256 property, bool holds) private {
        if (!holds) violations[property]++;
    }

    function _remember(bytes32 id, IUpgradeOperator.Content memory content) private {
        uint256 delay = 0;
        for (uint256 i = 0; i < content.actions.length; i++) {
            if (_delayOf(content.actions[i]) > delay) delay = _delayOf(content.actions[i]);
        }
        for (uint256 i = 0; i < content.rollback.length; i++) {
            if (_delayOf(content.rollback[i]) > delay) delay = _delayOf(content.rollback[i]);
        }
        _known[id] = true;
        _ghosts.push(
            Ghost({
                id: id,
                proposedAt: block.timestamp,
                readyAt: block.timestamp + delay,
                executedAt: 0,
                cancelled: false,
                rolledBack: false,
                forced: _anyForced(content),
                agreedBy: address(0),
                content: abi.encode(content)
            })
        );
    }

    /// @dev What follows from actions that are in force now.
    function _follow(IUpgradeOperator.Action[] memory actions, uint256 proposedAt) private {
        for (uint256 i = 0; i < actions.length; i++) {
            IUpgradeOperator.Kind kind = actions[i].kind;
            uint256 denied = _deniedAt[_subject(actions[i])];
            _expect(14, denied == 0 || denied < proposedAt);
            if (_isRole(kind)) {
                uint256 role = kind == IUpgradeOperator.Kind.Owner ? 0 : 1;
                _nominee[role] = address(uint160(_word(actions[i].data)));
                _nomineeUntil[role] = block.timestamp + 14 days;
            }
            if (kind == IUpgradeOperator.Kind.Delay) {
                (uint256 class, uint256 delay) = abi.decode(actions[i].data, (uint256, uint256));
                _expect(4, delay >= _delays[class] || block.timestamp >= proposedAt + _delays[class]);
                _expect(2, delay >= 48 hours);
                _delays[class] = delay;
            }
            if (kind == IUpgradeOperator.Kind.FreezeRenewal) {
                _deniedAt[keccak256(abi.encode(IUpgradeOperator.Kind.App, actions[i].target, _word(actions[i].data)))] =
                    block.timestamp;
            }
            if (kind == IUpgradeOperator.Kind.FreezeRenewal) _followFreeze(false);
            if (kind == IUpgradeOperator.Kind.App && _lastFreezeEnd > block.timestamp) {
                _lastFreezeEnd = block.timestamp;
            }
        }
    }

    function _followFreeze(bool byDenial) private {
        _expect(10, !byDenial || _lastFreezeEnd == 0 || block.timestamp >= _lastFreezeEnd + 7 days);
        _expect(10, kms.frozenUntil(address(app)) == block.timestamp + 7 days);
        _lastFreezeEnd = block.timestamp + 7 days;
    }

    function _delayOf(IUpgradeOperator.Action memory action) private view returns (uint256) {
        IUpgradeOperator.Kind kind = action.kind;
        if (kind == IUpgradeOperator.Kind.Delay) return _delays[_word(action.data)];
        if (kind == IUpgradeOperator.Kind.ForcedGuardian && _delays[1] < 7 days) return 7 days;
        if (_isRole(kind)) return _delays[1];
        bool isUpgrade = kind == IUpgradeOperator.Kind.ImplementationUpgrade
            || kind == IUpgradeOperator.Kind.AppImplementation || kind == IUpgradeOperator.Kind.FreezeForGood
            || kind == IUpgradeOperator.Kind.KeyEpoch;
        return _delays[isUpgrade ? 2 : 0];
    }

    function _isRole(IUpgradeOperator.Kind kind) private pure returns (bool) {
        return kind == IUpgradeOperator.Kind.Owner || kind == IUpgradeOperator.Kind.Guardian
            || kind == IUpgradeOperator.Kind.ForcedGuardian;
    }

    function _anyForced(IUpgradeOperator.Content memory content) private pure returns (bool) {
        for (uint256 i = 0; i < content.actions.length; i++) {
            if (content.actions[i].kind == IUpgradeOperator.Kind.ForcedGuardian) return true;
        }
        for (uint256 i = 0; i < content.rollback.length; i++) {
            if (content.rollback[i].kind == IUpgradeOperator.Kind.ForcedGuardian) return true;
        }
        return false;
    }

    function _stateOf(Ghost storage ghost) private view returns (IUpgradeOperator.State) {
        if (ghost.rolledBack) return IUpgradeOperator.State.RolledBack;
        if (ghost.executedAt != 0) return IUpgradeOperator.State.Executed;
        if (ghost.cancelled) return IUpgradeOperator.State.Cancelled;
        if (block.timestamp < ghost.readyAt) return IUpgradeOperator.State.Waiting;
        if (block.timestamp < ghost.readyAt + WINDOW) return IUpgradeOperator.State.Ready;
        return IUpgradeOperator.State.Expired;
    }

    function _isPending(Ghost storage ghost) private view returns (bool) {
        IUpgradeOperator.State state = _stateOf(ghost);
        return state == IUpgradeOperator.State.Waiting || state == IUpgradeOperator.State.Ready;
    }

    function _isOwnerOrGuardian(address by) private view returns (bool) {
        return by == operator.owner() || by == operator.guardian();
    }

    function _pick(uint256 which) private view returns (Ghost storage) {
        uint256 count = _ghosts.length;
        return _ghosts[which % 2 == 0 || count < 5 ? which % count : count - 1 - which % 5];
    }

    /// @dev Mostly one in this state, and if so wanted, one whose rollback somebody agreed to.
    function _pickIn(IUpgradeOperator.State state, bool agreed, uint256 which) private view returns (Ghost storage) {
        uint256 count = _ghosts.length;
        for (uint256 i = 0; i < count && which % 8 > 0; i++) {
            Ghost storage ghost = _ghosts[(which % count + i) % count];
            if (_stateOf(ghost) == state && (!agreed || ghost.agreedBy != address(0))) return ghost;
        }
        return _pick(which);
    }

    // What is allowed.

    function _facts() private view returns (bool[FACTS] memory facts) {
        for (uint256 i = 0; i < 3; i++) {
            facts[i] = app.allowedComposeHashes(_compose(i));
            facts[CONFIGURATION + 2 * i] = app.isConfigurationAllowed(_compose(i), _image(0), block.timestamp);
            facts[CONFIGURATION + 2 * i + 1] = app.isConfigurationAllowed(_compose(i), _image(1), block.timestamp);
        }
        for (uint256 i = 0; i < 2; i++) {
            facts[3 + i] = app.allowedDeviceIds(_device(i));
            facts[5 + i] = kms.allowedOsImages(_image(i));
        }
        facts[7] = app.allowAnyDevice();
        facts[8] = !app.requireTcbUpToDate() || block.timestamp < app.outdatedTcbToleratedUntil();
        facts[9] = kms.kmsAllowedAggregatedMrs(_device(2));
        facts[10] = kms.kmsAllowedDeviceIds(_device(3));
        facts[UNFROZEN] = block.timestamp >= kms.frozenUntil(address(app));
    }

    /// @dev Whether one of the actions is a grant of this fact.
    function _isAnnounced(uint256 fact, bytes memory inForce) private pure returns (bool) {
        if (inForce.length == 0) return false;
        IUpgradeOperator.Action[] memory actions = abi.decode(inForce, (IUpgradeOperator.Action[]));
        for (uint256 i = 0; i < actions.length; i++) {
            if (_grants(actions[i], fact)) return true;
        }
        return false;
    }

    function _grants(IUpgradeOperator.Action memory action, uint256 fact) private pure returns (bool) {
        IUpgradeOperator.Kind kind = action.kind;
        bytes32 word = bytes32(_word(action.data));
        if (kind == IUpgradeOperator.Kind.ComposeHash) {
            if (fact < 3) return word == _compose(fact);
            return fact >= CONFIGURATION && fact < UNFROZEN && word == _compose((fact - CONFIGURATION) / 2);
        }
        if (kind == IUpgradeOperator.Kind.Version && fact >= CONFIGURATION && fact < UNFROZEN) {
            IAppAuthPolicy.Version memory version = abi.decode(action.data, (IAppAuthPolicy.Version));
            uint256 pair = fact - CONFIGURATION;
            return version.composeHash == _compose(pair / 2) && version.osImageHashes[0] == _image(pair % 2);
        }
        if (fact == 3 || fact == 4) return kind == IUpgradeOperator.Kind.Device && word == _device(fact - 3);
        if (fact == 5 || fact == 6) return kind == IUpgradeOperator.Kind.OsImage && word == _image(fact - 5);
        if (fact == 7) return kind == IUpgradeOperator.Kind.AnyDevice;
        if (fact == 8) return kind == IUpgradeOperator.Kind.OutdatedTcb;
        if (fact == 9) return kind == IUpgradeOperator.Kind.KmsAggregatedMr;
        if (fact == 10) return kind == IUpgradeOperator.Kind.KmsDevice;
        return fact == UNFROZEN && kind == IUpgradeOperator.Kind.App;
    }

    function _settings() private view returns (bytes32[SETTINGS] memory settings) {
        (uint48 policy, uint48 roles, uint48 upgrades) = operator.delays();
        settings[0] = bytes32(uint256(uint160(operator.owner())));
        settings[1] = bytes32(uint256(uint160(operator.guardian())));
        settings[2] = keccak256(abi.encode(policy, roles, upgrades));
        settings[3] = keccak256(bytes(kms.gatewayAppId()));
        settings[4] = bytes32(uint256(uint160(kms.appImplementation())));
        settings[5] = vm.load(address(app), IMPLEMENTATION_SLOT) ^ vm.load(address(kms), IMPLEMENTATION_SLOT) << 1;
        settings[6] = keccak256(abi.encode(app.frozenForGood()));
        settings[7] = keccak256(abi.encode(app.upgradesDisabled(), kms.upgradesDisabled()));
        (settings[8],,,) = operator.genesisOf(address(app));
        (uint64 epoch,,) = kms.keyEpoch();
        settings[9] = bytes32(uint256(epoch));
        (bytes memory k256Pubkey,,,) = kms.kmsInfo();
        settings[10] = keccak256(k256Pubkey);
    }

    function _isSettingFor(uint256 setting, uint256 step) private pure returns (bool) {
        if (setting < 2) return step == ROLES;
        return step == CONTENT || (setting == 7 && step == DENIAL);
    }

    // What is tried.

    function _actor(uint256 seed) private view returns (address) {
        if (seed % 8 < 5) return operator.owner();
        if (seed % 8 < 7) return operator.guardian();
        return _person(seed >> 3);
    }

    function _person(uint256 seed) private pure returns (address) {
        address[5] memory people = [OWNER, GUARDIAN, STRANGER, address(0xBEA), address(0xCAB)];
        return people[seed % 5];
    }

    function _compose(uint256 i) private pure returns (bytes32) {
        return keccak256(abi.encode("compose", i % 3));
    }

    function _image(uint256 i) private pure returns (bytes32) {
        return keccak256(abi.encode("image", i % 2));
    }

    function _device(uint256 i) private pure returns (bytes32) {
        return keccak256(abi.encode("device", i));
    }

    function _anyContent(uint256 first, uint256 second, uint256 undo)
        private
        view
        returns (IUpgradeOperator.Content memory)
    {
        IUpgradeOperator.Action[] memory actions = new IUpgradeOperator.Action[](second % 3 == 0 ? 2 : 1);
        IUpgradeOperator.Action[] memory rollback = new IUpgradeOperator.Action[](undo % 2);
        actions[0] = _anyAction(first);
        if (actions.length > 1) actions[1] = _anyAction(second >> 2);
        if (rollback.length > 0) rollback[0] = _anyAction(undo >> 2);
        return _content(actions, rollback);
    }

    function _anyAction(uint256 seed) private view returns (IUpgradeOperator.Action memory) {
        IUpgradeOperator.Kind kind = IUpgradeOperator.Kind(seed % KINDS);
        uint256 value = seed / KINDS;
        bool rare = kind == IUpgradeOperator.Kind.FreezeForGood || kind == IUpgradeOperator.Kind.ContractUpgrades;
        if (rare && value % 16 != 0) kind = IUpgradeOperator.Kind.Version;
        // Once recorded it is refused for ever.
        if (kind == IUpgradeOperator.Kind.Genesis && value % 4 != 0) kind = IUpgradeOperator.Kind.Owner;
        return IUpgradeOperator.Action(kind, _target(kind, value), _data(kind, value));
    }

    function _target(IUpgradeOperator.Kind kind, uint256 value) private view returns (address) {
        if (_isRole(kind) || kind == IUpgradeOperator.Kind.Delay) return address(operator);
        if (kind == IUpgradeOperator.Kind.ContractUpgrades || kind == IUpgradeOperator.Kind.ImplementationUpgrade) {
            return value % 2 == 0 ? address(app) : address(kms);
        }
        if (
            kind == IUpgradeOperator.Kind.OsImage || kind == IUpgradeOperator.Kind.KmsAggregatedMr
                || kind == IUpgradeOperator.Kind.KmsDevice || kind == IUpgradeOperator.Kind.GatewayAppId
                || kind == IUpgradeOperator.Kind.AppImplementation || kind == IUpgradeOperator.Kind.App
                || kind == IUpgradeOperator.Kind.FreezeRenewal || kind == IUpgradeOperator.Kind.KmsInfo
                || kind == IUpgradeOperator.Kind.KeyEpoch
        ) return address(kms);
        return address(app);
    }

    function _data(IUpgradeOperator.Kind kind, uint256 value) private view returns (bytes memory) {
        if (kind == IUpgradeOperator.Kind.ComposeHash) return abi.encode(_compose(value));
        if (kind == IUpgradeOperator.Kind.Device) return abi.encode(_device(value % 2));
        if (kind == IUpgradeOperator.Kind.OutdatedTcb) return abi.encode(block.timestamp + value % 100 days);
        if (kind == IUpgradeOperator.Kind.OsImage) return abi.encode(_image(value));
        if (kind == IUpgradeOperator.Kind.KmsAggregatedMr) return abi.encode(_device(2));
        if (kind == IUpgradeOperator.Kind.KmsDevice) return abi.encode(_device(3));
        if (kind == IUpgradeOperator.Kind.GatewayAppId) return abi.encode(_person(value));
        if (_isRole(kind)) return abi.encode(_person(value));
        if (kind == IUpgradeOperator.Kind.KmsInfo) return abi.encode(IKmsAuth.KmsInfo(abi.encode(value % 3), "", "", ""));
        if (kind == IUpgradeOperator.Kind.Genesis) return abi.encode(_device(4 + value % 2), _device(6));
        if (kind == IUpgradeOperator.Kind.KeyEpoch) {
            (uint64 epoch,,) = kms.keyEpoch();
            return abi.encode(epoch + value % 3, value % 5 days);
        }
        if (kind == IUpgradeOperator.Kind.App || kind == IUpgradeOperator.Kind.FreezeRenewal) {
            return abi.encode(address(app));
        }
        if (kind == IUpgradeOperator.Kind.AppImplementation) return abi.encode(_nextApp);
        if (kind == IUpgradeOperator.Kind.ImplementationUpgrade) {
            return abi.encode(value % 2 == 0 ? _nextApp : _nextKms);
        }
        if (kind == IUpgradeOperator.Kind.Delay) return abi.encode(value % 3, 40 hours + value % 12 days);
        if (kind == IUpgradeOperator.Kind.Sunset) {
            return abi.encode(app.newestVersion(), block.timestamp - 1 days + value % 60 days);
        }
        if (kind == IUpgradeOperator.Kind.Version) return abi.encode(_anyVersion(value));
        return ON;
    }

    /// @dev Mostly one that can be added when its time has come.
    function _anyVersion(uint256 value) private view returns (IAppAuthPolicy.Version memory version) {
        uint64 newest = app.newestVersion();
        version.number = newest + uint64(value % 8 == 0 ? 0 : 1 + value % 3);
        version.composeHash = _compose(value >> 3);
        version.osImageHashes = new bytes32[](1);
        version.osImageHashes[0] = _image(value >> 5);
        if (newest > 0 && value % 3 > 0) {
            version.supersedes = newest;
            version.sunset = uint64(block.timestamp + 2 days + value % 40 days);
        }
        version.isRollback = app.versionOf(version.composeHash, version.osImageHashes[0]) != 0;
    }

    /// @dev What denials of an action are kept under, said again in other words than the operator's.
    function _subject(IUpgradeOperator.Action memory action) private pure returns (bytes32) {
        IUpgradeOperator.Kind kind = action.kind;
        bytes32 word = bytes32(_word(action.data));
        if (kind == IUpgradeOperator.Kind.OutdatedTcb) word = 0;
        if (kind == IUpgradeOperator.Kind.Version) {
            kind = IUpgradeOperator.Kind.ComposeHash;
            word = abi.decode(action.data, (IAppAuthPolicy.Version)).composeHash;
        }
        return keccak256(abi.encode(kind, action.target, word));
    }

    function _forbidden(uint256 what, uint256 value, address by) private view returns (address, bytes memory) {
        if (what == 0) return (address(operator), abi.encodeWithSignature("renounceOwnership()"));
        if (what == 1) return (address(operator), abi.encodeWithSignature("transferOwnership(address)", by));
        if (what == 2) return (address(app), abi.encodeCall(app.addComposeHash, (_compose(value))));
        if (what == 3) return (address(app), abi.encodeCall(app.addDevice, (_device(value % 2))));
        if (what == 4) return (address(app), abi.encodeCall(app.setAllowAnyDevice, (true)));
        if (what == 5) return (address(app), abi.encodeCall(app.setRequireTcbUpToDate, (false)));
        if (what == 6) return (address(app), abi.encodeCall(app.addVersion, (_anyVersion(value))));
        if (what == 7) return (address(kms), abi.encodeCall(kms.addOsImageHash, (_image(value))));
        if (what == 8) return (address(kms), abi.encodeCall(kms.addKmsAggregatedMr, (_device(2))));
        if (what == 9) return (address(kms), abi.encodeCall(kms.unfreezeApp, (address(app))));
        if (what == 10) return (address(kms), abi.encodeCall(KmsAuth.initialize, (by, address(0))));
        if (what == 11) {
            return (address(app), abi.encodeWithSignature("upgradeToAndCall(address,bytes)", _nextApp, ""));
        }
        if (what == 12) return (address(kms), abi.encodeWithSignature("transferOwnership(address)", by));
        return (address(app), abi.encodeWithSignature("acceptOwnership()"));
    }

    function _word(bytes memory data) private pure returns (uint256) {
        return uint256(bytes32(data));
    }
}
