// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {ForgeTest} from "./support/Forge.sol";
import {Handler} from "./support/Handler.sol";
import {Replay} from "./support/Replay.sol";

/// @title What holds after any sequence of anything by anybody: proposals, denials, freezes, changes of roles and time.
contract GovernanceInvariants is ForgeTest {
    /// @dev How often each verb succeeded, one of them hardly ever.
    error Idle(string[8] verbs, uint256[8] successes);

    Handler private _handler;

    function setUp() public {
        _handler = new Handler(48 hours, 72 hours, 6 days);
        bytes4[] memory steps = new bytes4[](16);
        steps[0] = steps[1] = steps[2] = Handler.propose.selector;
        steps[3] = steps[4] = steps[5] = Handler.execute.selector;
        steps[6] = steps[7] = steps[8] = Handler.pass.selector;
        steps[9] = Handler.deny.selector;
        steps[10] = Handler.cancel.selector;
        steps[11] = Handler.agreeToRollback.selector;
        steps[12] = Handler.rollBack.selector;
        steps[13] = steps[14] = Handler.accept.selector;
        steps[15] = Handler.trespass.selector;
        _aimAt(address(_handler), steps);
    }

    /// @dev One campaign asks for all, because forge runs a campaign for each function, and they would be the same.
    function invariant_P1_P2_P3_P4_P5_P6_P8_P9_P10_P11_P13_P14_P17_P18_P20_P27() public view {
        require(_handler.violations(1) == 0, "P1: became allowed without 48 hours of notice");
        require(_handler.violations(2) == 0 && _handler.delaysAgree(), "P2: a delay below 48 hours");
        require(_handler.violations(3) == 0, "P3: executed before its own time");
        require(_handler.violations(4) == 0, "P4: a delay was lowered too soon");
        require(_handler.violations(5) == 0 && _handler.statesAgree(), "P5: not in the state that its times say");
        require(_handler.violations(6) == 0, "P6: an id came twice");
        require(_handler.violations(8) == 0, "P8: a role changed without being named and accepting");
        require(_handler.violations(9) == 0, "P9: somebody did what is not theirs");
        require(_handler.violations(10) == 0 && !_handler.frozenTooLong(), "P10: a freeze too long or too soon");
        require(_handler.violations(11) == 0, "P11: executed twice");
        require(_handler.violations(13) == 0, "P13: a version number fell");
        require(_handler.violations(14) == 0, "P14: what was denied came into force");
        require(_handler.violations(17) == 0, "P17: a value changed on a third path");
        require(_handler.pagesAgree(), "P20: the page of all ids is not every proposal in order");
        require(_handler.violations(27) == 0, "P27: a rollback twice, too late or by one alone");
        require(_handler.violations(_handler.GENESIS()) == 0, "a genesis was replaced");
        require(_handler.violations(_handler.EPOCH()) == 0, "an epoch was left out, or gone back to");
        Replay replay = _handler.replay();
        require(replay.operatorAgrees(), "P18: events do not say what the operator holds");
        require(replay.listsAgree(), "P18: events do not say what the lists hold");
        require(replay.valuesAgree(), "P18: events do not say what the single values are");
        require(replay.versionsAgree(), "P18: events do not say which versions are allowed");
    }

    /// @dev The campaign is not idle: in a quarter of its steps, drawn in another way, every verb succeeds.
    function test_theCampaignReachesEveryVerb() public {
        string[8] memory verbs =
            ["propose", "cancel", "execute", "deny", "agree", "rollBack", "acceptOwnership", "acceptGuardian"];
        uint256[8] memory successes;
        for (uint256 run = 0; run < 64; run++) {
            setUp();
            for (uint256 step = 0; step < 64; step++) {
                _step(keccak256(abi.encode(run, step)));
            }
            for (uint256 i = 0; i < verbs.length; i++) {
                successes[i] += _handler.successes(verbs[i]);
            }
        }
        for (uint256 i = 0; i < verbs.length; i++) {
            if (successes[i] < 3) revert Idle(verbs, successes);
        }
    }

    function _step(bytes32 seed) private {
        uint256 what = uint8(seed[0]);
        (uint256 a, uint256 b) = (uint64(uint256(seed) >> 64), uint64(uint256(seed)));
        if (what % 16 < 3) _handler.propose(a, b, a ^ b, uint256(seed));
        else if (what % 16 < 6) _handler.execute(a, b);
        else if (what % 16 < 9) _handler.pass(a, b);
        else if (what % 16 == 9) _handler.deny(a, b);
        else if (what % 16 == 10) _handler.cancel(a, b);
        else if (what % 16 == 11) _handler.agreeToRollback(a, b);
        else if (what % 16 == 12) _handler.rollBack(a, b);
        else if (what % 16 < 15) _handler.accept(a % 2 == 0, b);
        else _handler.trespass(a, b, a ^ b);
    }
}
