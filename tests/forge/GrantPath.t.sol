// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {UpgradeOperator} from "../../contracts/UpgradeOperator.sol";
import {IUpgradeOperator} from "../../contracts/interfaces/IUpgradeOperator.sol";
import {World} from "./support/World.sol";

/// @title Single proposals, over all times, delays and contents.
contract GrantPathTest is World {
    function setUp() public {
        _build(48 hours, 72 hours, 7 days);
    }

    /// @dev P1, P25: a grant is executed if and only if its delay passed and its window did not, whenever it is tried.
    function testFuzz_P1_onlyBetweenDelayAndExpiry(uint32 wait, bytes32 hash) public {
        vm.assume(hash != 0);
        uint256 waited = _within(wait, 0, 48 hours + WINDOW + 1 days);
        IUpgradeOperator.Content memory content = _content(_allowCompose(hash));
        bytes32 id = _propose(content);

        vm.warp(START + waited);
        bool done = _executes(id, content);

        assert(done == (waited >= 48 hours && waited < 48 hours + WINDOW));
        assert(app.allowedComposeHashes(hash) == done);
    }

    /// @dev P1, P25: the edges, one second to each side.
    function testFuzz_P1_edges(uint8 edge, bytes32 hash) public {
        vm.assume(hash != 0);
        uint256 late = edge % 2 == 0 ? 0 : WINDOW;
        uint256 waited = 48 hours + late + edge % 3 - 1;
        IUpgradeOperator.Content memory content = _content(_allowCompose(hash));
        bytes32 id = _propose(content);

        vm.warp(START + waited);

        assert(_executes(id, content) == (waited >= 48 hours && waited < 48 hours + WINDOW));
    }

    /// @dev P2: no operator has a delay below 48 hours, whatever it is made with.
    function testFuzz_P2_noShorterDelay(uint48 policy, uint48 roles, uint48 upgrades) public {
        try new UpgradeOperator(OWNER, GUARDIAN, IUpgradeOperator.Delays(policy, roles, upgrades)) returns (
            UpgradeOperator made
        ) {
            (uint48 p, uint48 r, uint48 u) = made.delays();
            assert(p == policy && r == roles && u == upgrades);
            assert(p >= 48 hours && r >= 48 hours && u >= 48 hours);
        } catch {
            bool inRange = policy >= 48 hours && roles >= 48 hours && upgrades <= 365 days;
            assert(!(inRange && upgrades >= policy && upgrades >= roles));
        }
    }

    /// @dev P2: neither by a proposal.
    function testFuzz_P2_noShorterDelayByProposal(uint8 class, uint48 delay) public {
        uint256 wanted = _within(delay, 0, 60 hours);
        IUpgradeOperator.Action memory action = _delay(IUpgradeOperator.DelayClass(class % 3), wanted);

        try this.grant(action) {} catch {}

        (uint48 p, uint48 r, uint48 u) = operator.delays();
        assert(p >= 48 hours && r >= 48 hours && u >= p && u >= r);
    }

    /// @dev P3: a waiting proposal keeps its time when the delay changes, to either side.
    function testFuzz_P3_timeIsFixed(uint48 delay) public {
        _grant(_delay(IUpgradeOperator.DelayClass.Policy, 5 days));
        IUpgradeOperator.Content memory change =
            _content(_delay(IUpgradeOperator.DelayClass.Policy, _within(delay, 48 hours, 7 days)));
        bytes32 changeId = _propose(change);
        IUpgradeOperator.Content memory content = _content(_allowCompose(COMPOSE));
        vm.warp(block.timestamp + 4 days);
        bytes32 id = _propose(content);
        uint256 readyAt = operator.proposal(id).readyAt;
        vm.warp(readyAt - 1);
        operator.execute(changeId, change);

        assert(operator.proposal(id).readyAt == readyAt);
        assert(!_executes(id, content));
        vm.warp(readyAt);
        assert(_executes(id, content));
    }

    /// @dev P4: lowering a delay takes the delay that is lowered.
    function testFuzz_P4_loweringTakesTheOldDelay(uint8 class, uint48 from, uint48 to, uint32 wait) public {
        IUpgradeOperator.DelayClass which = IUpgradeOperator.DelayClass(class % 3);
        uint256 old = _within(from, 8 days, 100 days);
        _grant(_delay(IUpgradeOperator.DelayClass.Upgrades, 100 days));
        _grant(_delay(which, old));
        uint256 lower =
            which == IUpgradeOperator.DelayClass.Upgrades ? _within(to, 7 days, old) : _within(to, 48 hours, old);
        IUpgradeOperator.Content memory content = _content(_delay(which, lower));
        bytes32 id = _propose(content);
        uint256 proposedAt = block.timestamp;

        uint256 waited = _within(wait, 0, old + 1 days);
        vm.warp(proposedAt + waited);

        assert(_executes(id, content) == (waited >= old));
    }

    /// @dev P3, P4: a lowering proposed under a short delay waits the longer one that came into force meanwhile.
    function testFuzz_P4_loweringRacesARaise(uint48 raised, uint32 wait) public {
        uint256 longer = _within(raised, 48 hours + 1, 7 days);
        IUpgradeOperator.Content memory raise = _content(_delay(IUpgradeOperator.DelayClass.Policy, longer));
        bytes32 raiseId = _propose(raise);
        IUpgradeOperator.Content memory lower = _content(_delay(IUpgradeOperator.DelayClass.Policy, 48 hours));
        bytes32 lowerId = _propose(lower);
        vm.warp(START + 48 hours);
        operator.execute(raiseId, raise);
        uint256 waited = _within(wait, 48 hours, longer + 1 days);

        vm.warp(START + waited);

        assert(_executes(lowerId, lower) == (waited >= longer));
    }

    /// @dev P5: what nobody executed in its window is over, and stays over.
    function testFuzz_P5_expires(uint32 later) public {
        IUpgradeOperator.Content memory content = _content(_allowCompose(COMPOSE));
        bytes32 id = _propose(content);

        vm.warp(START + 48 hours + WINDOW + later);

        assert(operator.stateOf(id) == IUpgradeOperator.State.Expired);
        assert(!_executes(id, content));
    }

    /// @dev P7, P11: execution is open to anyone, of exactly what was proposed, exactly once.
    function testFuzz_P11_onceAndAsProposed(address by, bytes32 other, uint32 later) public {
        vm.assume(other != COMPOSE && other != 0);
        IUpgradeOperator.Content memory content = _content(_allowCompose(COMPOSE));
        IUpgradeOperator.Content memory edited = _content(_allowCompose(other));
        bytes32 id = _propose(content);
        vm.warp(START + 48 hours);
        assert(!_executes(id, edited));

        vm.prank(by);
        operator.execute(id, content);

        vm.warp(START + 48 hours + later);
        assert(!_executes(id, content));
        assert(operator.stateOf(id) == IUpgradeOperator.State.Executed);
    }

    /// @dev P14: what was denied between proposal and execution, or in the second of the proposal, is not granted.
    function testFuzz_P14_denyBeatsAllow(bool byGuardian, uint32 deniedAfter, uint32 executedAfter) public {
        uint256 denied = _within(deniedAfter, 0, 48 hours + WINDOW - 1);
        uint256 executed = _within(executedAfter, denied > 48 hours ? denied : 48 hours, 48 hours + WINDOW - 1);
        IUpgradeOperator.Content memory content = _content(_allowCompose(COMPOSE));
        bytes32 id = _propose(content);
        vm.warp(START + denied);
        _deny(byGuardian ? GUARDIAN : OWNER, _allowCompose(COMPOSE));

        vm.warp(START + executed);

        assert(!_executes(id, content));
        assert(!app.allowedComposeHashes(COMPOSE));
    }

    /// @dev P14: a version is stopped by the denial of its compose hash.
    function testFuzz_P14_denyBeatsVersion(uint32 deniedAfter) public {
        IUpgradeOperator.Content memory content =
            _content(_action(IUpgradeOperator.Kind.Version, address(app), abi.encode(_version(1, COMPOSE, 0, 0))));
        bytes32 id = _propose(content);
        vm.warp(START + _within(deniedAfter, 0, 48 hours));
        _deny(GUARDIAN, _allowCompose(COMPOSE));

        vm.warp(START + 48 hours);

        assert(!_executes(id, content));
        assert(!app.isConfigurationAllowed(COMPOSE, OS_IMAGE, block.timestamp));
    }

    function grant(IUpgradeOperator.Action calldata action) external {
        _grant(action);
    }

    function _delay(IUpgradeOperator.DelayClass class, uint256 seconds_)
        private
        view
        returns (IUpgradeOperator.Action memory)
    {
        return _action(IUpgradeOperator.Kind.Delay, address(operator), abi.encode(class, seconds_));
    }
}
