// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {IUpgradeOperator} from "../../contracts/interfaces/IUpgradeOperator.sol";
import {World} from "./support/World.sol";

/// @title A contract that says the operator owns it, and calls back while the operator calls it.
contract CallingBack {
    address public immutable owner;
    bytes[] private _calls;
    uint256 public visits;
    uint256 public successes;

    constructor(address owner_) {
        owner = owner_;
    }

    function prepare(bytes calldata call) external {
        _calls.push(call);
    }

    function addComposeHash(bytes32) external {
        visits++;
        for (uint256 i = 0; i < _calls.length; i++) {
            (bool done,) = owner.call(_calls[i]);
            if (done) successes++;
        }
    }
}

/// @title P11: whatever a target does while it is called, a proposal is executed once, and grants what it says.
contract ReentrancyTest is World {
    CallingBack private _target;

    function setUp() public {
        _build(48 hours, 48 hours, 48 hours);
        _target = new CallingBack(address(operator));
    }

    /// @dev P11: executing it again from within fails, also when several actions call the same target.
    function testFuzz_P11_notAgainFromWithin(uint8 count, uint8 tries) public {
        IUpgradeOperator.Action[] memory actions = new IUpgradeOperator.Action[](_within(count, 1, 16));
        for (uint256 i = 0; i < actions.length; i++) {
            actions[i] =
                _action(IUpgradeOperator.Kind.ComposeHash, address(_target), abi.encode(keccak256(abi.encode(i))));
        }
        IUpgradeOperator.Content memory content = _content(actions, new IUpgradeOperator.Action[](0));
        bytes32 id = _propose(content);
        for (uint256 i = 0; i < _within(tries, 1, 3); i++) {
            _target.prepare(abi.encodeCall(IUpgradeOperator.execute, (id, content)));
        }
        vm.warp(START + 48 hours);

        operator.execute(id, content);

        assert(_target.visits() == actions.length && _target.successes() == 0);
        assert(operator.stateOf(id) == IUpgradeOperator.State.Executed);
    }

    /// @dev P11: it can execute another Ready proposal from within, as anybody can, and that one once, too.
    function testFuzz_P11_anotherOnceFromWithin(uint8 tries) public {
        IUpgradeOperator.Content memory other = _content(_allowCompose(COMPOSE));
        bytes32 otherId = _propose(other);
        IUpgradeOperator.Content memory content =
            _content(_action(IUpgradeOperator.Kind.ComposeHash, address(_target), abi.encode(COMPOSE)));
        bytes32 id = _propose(content);
        for (uint256 i = 0; i < _within(tries, 1, 5); i++) {
            _target.prepare(abi.encodeCall(IUpgradeOperator.execute, (otherId, other)));
        }
        vm.warp(START + 48 hours);

        bool done = _executes(id, content);

        assert(_target.successes() <= 1);
        assert(app.allowedComposeHashes(COMPOSE) == (operator.stateOf(otherId) == IUpgradeOperator.State.Executed));
        assert((operator.stateOf(id) == IUpgradeOperator.State.Executed) == done);
    }
}
