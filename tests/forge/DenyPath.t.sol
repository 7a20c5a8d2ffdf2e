// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {IAppAuthPolicy} from "../../contracts/interfaces/IAppAuth.sol";
import {IUpgradeOperator} from "../../contracts/interfaces/IUpgradeOperator.sol";
import {World} from "./support/World.sol";

/// @title What owner and guardian may do at once, and nobody else.
contract DenyPathTest is World {
    function setUp() public {
        _build(48 hours, 48 hours, 7 days);
    }

    /// @dev P9: whatever the guardian denies, the grant path can allow again.
    function testFuzz_P9_denialIsRegrantable(bytes32 hash, uint32 later) public {
        vm.assume(hash != 0);
        _grant(_allowCompose(hash));
        _deny(GUARDIAN, _allowCompose(hash));
        assert(!app.allowedComposeHashes(hash));
        vm.warp(block.timestamp + 1 + later);

        _grant(_allowCompose(hash));

        assert(app.allowedComposeHashes(hash));
    }

    /// @dev P9: the guardian cannot propose, adopt or give up upgrades for good.
    function testFuzz_P9_guardianCannotGrant(bytes32 hash) public {
        vm.assume(hash != 0);
        IUpgradeOperator.Content memory content = _content(_allowCompose(hash));
        IUpgradeOperator.Action memory forGood = _action(IUpgradeOperator.Kind.ContractUpgrades, address(app), ON);

        assert(!_calls(GUARDIAN, abi.encodeCall(IUpgradeOperator.propose, (content))));
        assert(!_calls(GUARDIAN, abi.encodeCall(IUpgradeOperator.adopt, (address(app)))));
        assert(!_calls(GUARDIAN, abi.encodeCall(IUpgradeOperator.deny, (_list(forGood)))));
        assert(!app.upgradesDisabled());
    }

    /// @dev P9: a stranger can neither deny nor cancel nor agree.
    function testFuzz_P9_strangerCanNothing(address stranger, uint8 kind) public {
        vm.assume(stranger != OWNER && stranger != GUARDIAN);
        bytes32 id = _propose(_content(_allowCompose(COMPOSE)));
        IUpgradeOperator.Action memory action = _deniable(kind);

        assert(!_calls(stranger, abi.encodeCall(IUpgradeOperator.deny, (_list(action)))));
        assert(!_calls(stranger, abi.encodeCall(IUpgradeOperator.cancel, (id))));
        assert(!_calls(stranger, abi.encodeCall(IUpgradeOperator.agreeToRollback, (id))));
        assert(operator.stateOf(id) == IUpgradeOperator.State.Waiting);
    }

    /// @dev P10: a freeze lasts 7 days; another one needs 7 days of pause, whoever of the two asks.
    function testFuzz_P10_freezeIsBounded(bool byGuardian, uint32 later) public {
        IUpgradeOperator.Action memory freeze = _freeze();
        _deny(byGuardian ? GUARDIAN : OWNER, freeze);
        assert(kms.frozenUntil(address(app)) == START + 7 days);
        uint256 waited = _within(later, 0, 20 days);

        vm.warp(START + waited);
        bool again = _calls(byGuardian ? OWNER : GUARDIAN, abi.encodeCall(IUpgradeOperator.deny, (_list(freeze))));

        assert(again == (waited >= 14 days));
        assert(kms.frozenUntil(address(app)) == (again ? block.timestamp : START) + 7 days);
    }

    /// @dev P10: before that only a proposal freezes, again for 7 days, and shuts the deny path for longer.
    function testFuzz_P10_renewalTakesAProposal(uint32 later) public {
        IUpgradeOperator.Content memory renewal =
            _content(_action(IUpgradeOperator.Kind.FreezeRenewal, address(kms), abi.encode(address(app))));
        bytes32 id = _propose(renewal);
        vm.warp(START + 1);
        _deny(GUARDIAN, _freeze());
        vm.warp(START + _within(later, 48 hours, WINDOW));

        bool done = _executes(id, renewal);

        assert(done);
        assert(kms.frozenUntil(address(app)) == block.timestamp + 7 days);
        assert(!_calls(GUARDIAN, abi.encodeCall(IUpgradeOperator.deny, (_list(_freeze())))));
    }

    /// @dev P15: of every kind, data of another length than its own is refused, on both paths.
    function testFuzz_P15_wrongLength(uint8 kind, bytes calldata data) public {
        IUpgradeOperator.Kind which = IUpgradeOperator.Kind(kind % 19);
        vm.assume(which != IUpgradeOperator.Kind.Version && data.length != _bytesOf(which));
        IUpgradeOperator.Action memory action = _action(which, _targetOf(which), data);

        assert(!_calls(OWNER, abi.encodeCall(IUpgradeOperator.propose, (_bareContent(action)))));
        assert(!_calls(OWNER, abi.encodeCall(IUpgradeOperator.deny, (_list(action)))));
    }

    /// @dev P15: the lengths that people get wrong: 0, 31, 33, 47, 49 bytes.
    function testFuzz_P15_nearLength(uint8 kind, uint8 which, bytes32 word) public {
        uint8[5] memory lengths = [0, 31, 33, 47, 49];
        IUpgradeOperator.Kind wanted = IUpgradeOperator.Kind(kind % 19);
        bytes memory data = new bytes(lengths[which % 5]);
        for (uint256 i = 0; i < data.length; i++) {
            data[i] = word[i % 32];
        }
        IUpgradeOperator.Action memory action = _action(wanted, _targetOf(wanted), data);

        assert(!_calls(OWNER, abi.encodeCall(IUpgradeOperator.propose, (_bareContent(action)))));
        assert(!_calls(OWNER, abi.encodeCall(IUpgradeOperator.deny, (_list(action)))));
    }

    /// @dev P15: zero is no hash, no device, no address, no version number and no switch. (No delay either: P2.)
    function testFuzz_P15_zero(uint8 kind) public {
        IUpgradeOperator.Kind wanted = IUpgradeOperator.Kind(kind % 19);
        vm.assume(wanted != IUpgradeOperator.Kind.Delay);
        IUpgradeOperator.Action memory action = _action(wanted, _targetOf(wanted), new bytes(_bytesOf(wanted)));

        assert(!_calls(OWNER, abi.encodeCall(IUpgradeOperator.propose, (_bareContent(action)))));
    }

    /// @dev P15: a version with a register that is not 48 bytes long is refused.
    function testFuzz_P15_registerLength(uint8 place, uint8 length) public {
        vm.assume(length != 48 && !(place % 5 == 4 && length == 0));
        bytes[5] memory set = [new bytes(48), new bytes(48), new bytes(48), new bytes(48), new bytes(48)];
        set[place % 5] = new bytes(length);
        IAppAuthPolicy.Version memory version = _version(1, COMPOSE, 0, 0);
        version.registers = new IAppAuthPolicy.Registers[](1);
        version.registers[0] = IAppAuthPolicy.Registers(set[0], set[1], set[2], set[3], set[4]);
        IUpgradeOperator.Action memory action =
            _action(IUpgradeOperator.Kind.Version, address(app), abi.encode(version));

        try this.grant(action) {
            assert(false);
        } catch {}
        assert(app.newestVersion() == 0);
    }

    function grant(IUpgradeOperator.Action calldata action) external {
        _grant(action);
    }

    function _calls(address by, bytes memory data) private returns (bool done) {
        vm.prank(by);
        (done,) = address(operator).call(data);
    }

    function _freeze() private view returns (IUpgradeOperator.Action memory) {
        return _action(IUpgradeOperator.Kind.App, address(kms), abi.encode(address(app)));
    }

    function _deniable(uint8 kind) private view returns (IUpgradeOperator.Action memory) {
        if (kind % 4 == 0) return _freeze();
        if (kind % 4 == 1) return _allowCompose(COMPOSE);
        if (kind % 4 == 2) return _action(IUpgradeOperator.Kind.ContractUpgrades, address(kms), ON);
        return _action(IUpgradeOperator.Kind.AnyDevice, address(app), ON);
    }

    /// @dev Without code hashes that a view would have to compute: malformed data may make it revert.
    function _bareContent(IUpgradeOperator.Action memory action)
        private
        view
        returns (IUpgradeOperator.Content memory)
    {
        bytes32[] memory hashes = new bytes32[](2);
        hashes[0] = action.target.codehash;
        return IUpgradeOperator.Content(_list(action), new IUpgradeOperator.Action[](0), hashes, "");
    }

    function _bytesOf(IUpgradeOperator.Kind kind) private pure returns (uint256) {
        return kind == IUpgradeOperator.Kind.Sunset || kind == IUpgradeOperator.Kind.Delay ? 64 : 32;
    }

    function _targetOf(IUpgradeOperator.Kind kind) private view returns (address) {
        if (
            kind == IUpgradeOperator.Kind.Guardian || kind == IUpgradeOperator.Kind.Owner
                || kind == IUpgradeOperator.Kind.Delay
        ) return address(operator);
        if (
            kind == IUpgradeOperator.Kind.OsImage || kind == IUpgradeOperator.Kind.KmsAggregatedMr
                || kind == IUpgradeOperator.Kind.KmsDevice || kind == IUpgradeOperator.Kind.GatewayAppId
                || kind == IUpgradeOperator.Kind.AppImplementation || kind == IUpgradeOperator.Kind.App
                || kind == IUpgradeOperator.Kind.FreezeRenewal
        ) return address(kms);
        return address(app);
    }
}
