// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {IUpgradeOperator} from "../../contracts/interfaces/IUpgradeOperator.sol";
import {World} from "./support/World.sol";

/// @title What halmos lets a proof do.
interface Svm {
    /// @dev Any call of any function of the contract of this name.
    function createCalldata(string calldata contractName) external returns (bytes memory);
}

/// @title What scripts/prove.py has halmos prove: each function for all its arguments, not for some of them.
contract Proofs is World {
    Svm private constant svm = Svm(0xF3993A62377BCd56AE39D773740A5390411E8BC9);
    uint256 private constant FAR = 10_000_000_000;

    function setUp() public {
        _build(48 hours, 72 hours, 7 days);
    }

    /// @dev P1, P2: for all delays that an operator can be made with, all hashes, devices and images, and all times: what
    /// is in force was proposed 48 hours before, and no shorter than the delay before.
    function check_P1_floor(
        uint48 policy,
        uint48 roles,
        uint48 upgrades,
        uint8 kind,
        bytes32 value,
        uint256 proposedAt,
        uint256 executedAt
    ) public {
        vm.assume(START <= proposedAt && proposedAt <= executedAt && executedAt < FAR);
        vm.assume(kind < 3);
        _build(policy, roles, upgrades);
        IUpgradeOperator.Action memory action = _allowCompose(value);
        if (kind == 1) action = _action(IUpgradeOperator.Kind.Device, address(app), abi.encode(value));
        if (kind == 2) action = _action(IUpgradeOperator.Kind.OsImage, address(kms), abi.encode(value));
        IUpgradeOperator.Content memory content = _content(action);
        vm.warp(proposedAt);
        bytes32 id = _propose(content);
        vm.warp(executedAt);

        operator.execute(id, content);

        assert(executedAt - proposedAt >= 48 hours);
        assert(executedAt - proposedAt >= policy);
    }

    /// @dev P1, P4: changes of the operator itself wait 48 hours, too, and the delay that they change.
    function check_P1_floorOfDelays(uint256 class, uint256 delay, uint256 proposedAt, uint256 executedAt) public {
        vm.assume(START <= proposedAt && proposedAt <= executedAt && executedAt < FAR);
        IUpgradeOperator.Action memory action =
            _action(IUpgradeOperator.Kind.Delay, address(operator), abi.encode(class, delay));
        IUpgradeOperator.Content memory content = _content(action);
        vm.warp(proposedAt);
        bytes32 id = _propose(content);
        vm.warp(executedAt);

        operator.execute(id, content);

        uint256 old = class == 0 ? 48 hours : class == 1 ? 72 hours : 7 days;
        (uint48 policy, uint48 roles, uint48 upgrades) = operator.delays();
        assert(executedAt - proposedAt >= old);
        assert(policy >= 48 hours && roles >= 48 hours && upgrades >= 48 hours);
    }

    /// @dev P9: whatever the guardian calls at the operator, nothing becomes allowed, no role, delay, proposal or code
    /// changes hands, and what it denies can be allowed again.
    function check_P9_guardian(bytes32 any, uint256 time) public {
        bytes32 id = _propose(_content(_allowCompose(COMPOSE)));
        vm.assume(START <= time && time < START + 48 hours);
        vm.warp(time);
        bytes memory call = svm.createCalldata("UpgradeOperator");

        vm.prank(GUARDIAN);
        (bool done,) = address(operator).call(call);

        vm.assume(done);
        assert(!app.allowedComposeHashes(any) && !app.allowedDeviceIds(any) && !kms.allowedOsImages(any));
        assert(!kms.kmsAllowedAggregatedMrs(any) && !kms.kmsAllowedDeviceIds(any) && !app.allowAnyDevice());
        assert(app.requireTcbUpToDate() && app.outdatedTcbToleratedUntil() == 0 && app.newestVersion() == 0);
        assert(!app.upgradesDisabled() && !kms.upgradesDisabled() && !app.frozenForGood());
        assert(kms.frozenUntil(address(app)) <= time + 7 days);
        _assertRolesUnchanged();
        assert(operator.proposalCount() == 1 && operator.proposal(id).readyAt == START + 48 hours);
    }

    /// @dev P9: and whoever has no role gets no call through that changes anything, while no proposal is Ready.
    function check_P9_stranger(address by, uint256 time) public {
        _propose(_content(_allowCompose(COMPOSE)));
        vm.assume(START <= time && time < START + 48 hours);
        vm.assume(by != OWNER && by != GUARDIAN);
        vm.warp(time);
        bytes memory call = svm.createCalldata("UpgradeOperator");
        vm.assume(bytes4(call) != IUpgradeOperator.anchorReceipt.selector); // it is for everybody, and only an event

        vm.prank(by);
        (bool done,) = address(operator).call(call);

        assert(!done);
    }

    /// @dev P1, P8: whoever is named so that the guardian cannot cancel it was announced 7 days before, or the delay of
    /// roles before where that is longer.
    function check_P1_forcedGuardian(uint48 roles, address heir, uint256 proposedAt, uint256 executedAt) public {
        vm.assume(START <= proposedAt && proposedAt <= executedAt && executedAt < FAR);
        _build(48 hours, roles, 365 days);
        IUpgradeOperator.Content memory content = _content(_force(heir));
        vm.warp(proposedAt);
        bytes32 id = _propose(content);
        vm.warp(executedAt);

        operator.execute(id, content);

        (address named,) = operator.nominatedGuardian();
        assert(named == heir && operator.guardian() == GUARDIAN);
        assert(executedAt - proposedAt >= 7 days && executedAt - proposedAt >= roles);
    }

    /// @dev P9: the guardian cancels its own forced replacement at no time.
    function check_P9_forcedGuardian(address heir, uint256 time) public {
        vm.assume(START <= time && time < FAR && heir != address(0));
        bytes32 id = _propose(_content(_force(heir)));
        vm.warp(time);

        vm.prank(GUARDIAN);
        (bool done,) = address(operator).call(abi.encodeCall(IUpgradeOperator.cancel, (id)));

        assert(!done);
    }

    function _force(address heir) private view returns (IUpgradeOperator.Action memory) {
        return _action(IUpgradeOperator.Kind.ForcedGuardian, address(operator), abi.encode(heir));
    }

    /// @dev P11: after an execution no other one of the same proposal succeeds: by nobody, at no time, and whatever
    /// owner or guardian called at the operator between the two. (A call of `propose` is left out, for it makes a
    /// proposal of another id: P6.)
    function check_P11_once(bytes32 value, bool asOwner, address again, uint256 time, uint256 later) public {
        IUpgradeOperator.Content memory content = _content(_allowCompose(value));
        bytes32 id = _propose(content);
        vm.assume(START <= time && time <= later && later < FAR);
        vm.warp(time);
        operator.execute(id, content);
        bytes memory call = svm.createCalldata("UpgradeOperator");
        vm.assume(bytes4(call) != IUpgradeOperator.propose.selector);
        vm.prank(asOwner ? OWNER : GUARDIAN);
        (bool called,) = address(operator).call(call);
        vm.assume(called); // a call that fails changes nothing
        vm.warp(later);

        vm.prank(again);
        (bool done,) = address(operator).call(abi.encodeCall(IUpgradeOperator.execute, (id, content)));

        assert(!done);
    }

    function _assertRolesUnchanged() private view {
        (uint48 policy, uint48 roles, uint48 upgrades) = operator.delays();
        (address owner,) = operator.nominatedOwner();
        (address guardian,) = operator.nominatedGuardian();
        assert(operator.owner() == OWNER && operator.guardian() == GUARDIAN);
        assert(owner == address(0) && guardian == address(0));
        assert(policy == 48 hours && roles == 72 hours && upgrades == 7 days);
    }
}
