// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {IUpgradeOperator} from "../../contracts/interfaces/IUpgradeOperator.sol";
import {World} from "./support/World.sol";

/// @title P13: versions rise; a superseded one ends at its sunset by itself. P20: their history comes in pages.
contract VersionsTest is World {
    bytes32 private constant NEXT = keccak256("next compose");

    function setUp() public {
        _build(48 hours, 48 hours, 48 hours);
    }

    /// @dev P13: a number that is not above the newest is refused, and so is one beyond 48 bits.
    function testFuzz_P13_numbersRise(uint64 first, uint64 second, bool wild) public {
        first = uint64(_within(first, 1, type(uint48).max));
        if (!wild) second = uint64(_within(second, 0, type(uint48).max));
        _grantVersion(first, COMPOSE, 0, 0);

        try this.grantVersion(second, NEXT, 0, 0) {
            assert(second > first && second < 2 ** 48 && app.newestVersion() == second);
        } catch {
            assert((second <= first || second >= 2 ** 48) && app.newestVersion() == first);
        }
    }

    /// @dev P13, P19: no transaction ends the old version; its time does, in the view and for a future time.
    function testFuzz_P13_sunsetIsInTheView(uint32 sunsetAfter, uint32 askedAfter) public {
        _grantVersion(1, COMPOSE, 0, 0);
        uint256 executedAt = block.timestamp + 48 hours;
        uint256 sunset = executedAt + _within(sunsetAfter, 1, 90 days);
        _grantVersion(2, NEXT, 1, uint64(sunset));
        uint256 asked = executedAt + _within(askedAfter, 0, 180 days);

        bool foretold = app.isConfigurationAllowed(COMPOSE, OS_IMAGE, asked);
        vm.warp(asked);

        assert(foretold == (asked < sunset));
        assert(app.isConfigurationAllowed(COMPOSE, OS_IMAGE, asked) == foretold);
        assert(app.isConfigurationAllowed(NEXT, OS_IMAGE, asked));
    }

    /// @dev P13: owner and guardian make a sunset earlier only, and what ended stays ended.
    function testFuzz_P13_denyOnlyShortens(bool byGuardian, uint32 from, uint32 to) public {
        _grantVersion(1, COMPOSE, 0, 0);
        uint256 old = block.timestamp + 48 hours + _within(from, 1, 90 days);
        _grantVersion(2, NEXT, 1, uint64(old));
        uint256 wanted = block.timestamp + _within(to, 0, 180 days);
        vm.prank(byGuardian ? GUARDIAN : OWNER);

        try operator.deny(_list(_sunset(1, wanted))) {
            assert(wanted < old);
            assert(app.versionRecord(1).endsAt == wanted);
        } catch {
            assert(wanted >= old);
            assert(app.versionRecord(1).endsAt == old);
        }
    }

    /// @dev P13: an ended version cannot be given a later end, by nobody.
    function testFuzz_P13_endedStaysEnded(uint32 later) public {
        _grantVersion(1, COMPOSE, 0, 0);
        _deny(GUARDIAN, _sunset(1, block.timestamp));
        vm.warp(block.timestamp + 1);

        try this.grant(_sunset(1, block.timestamp + 3 days + later)) {
            assert(false);
        } catch {}

        assert(!app.isConfigurationAllowed(COMPOSE, OS_IMAGE, block.timestamp));
    }

    /// @dev P20: pages of versions, put together, are all versions, newest first, and none is longer than asked.
    function testFuzz_P20_versionPages(uint8 howMany, uint8 size) public {
        uint256 count = _within(howMany, 1, 6);
        uint256 asked = _within(size, 1, 4);
        for (uint64 number = 1; number <= count; number++) {
            _grantVersion(number * 10, keccak256(abi.encode(number)), 0, 0);
        }

        uint64 from = 0;
        uint256 seen = 0;
        while (seen < count) {
            uint64[] memory page = app.versionNumbers(from, asked);
            assert(page.length > 0 && page.length <= asked);
            for (uint256 i = 0; i < page.length; i++) {
                assert(page[i] == (count - seen) * 10);
                seen++;
            }
            from = app.versionRecord(page[page.length - 1]).previous;
        }
        assert(from == 0);
    }

    /// @dev P20: pages of proposals, put together, are all proposals in order; no page holds more than 100.
    function testFuzz_P20_proposalPages(uint8 howMany, uint256 start, uint256 size) public {
        uint256 count = _within(howMany, 0, 130);
        start = start % 2 == 0 ? start % 200 : start;
        size = size % 2 == 0 ? size % 200 : size;
        IUpgradeOperator.Content memory content = _content(_allowCompose(COMPOSE));
        bytes32[] memory ids = new bytes32[](count);
        for (uint256 i = 0; i < count; i++) {
            ids[i] = _propose(content);
        }

        bytes32[] memory page = operator.proposalIds(start, size);

        uint256 left = start < count ? count - start : 0;
        uint256 most = size < 100 ? size : 100;
        assert(operator.proposalCount() == count);
        assert(page.length == (left < most ? left : most));
        for (uint256 i = 0; i < page.length; i++) {
            assert(page[i] == ids[start + i]);
            assert(i == 0 || page[i] != page[i - 1]);
        }
    }

    function grant(IUpgradeOperator.Action calldata action) external {
        _grant(action);
    }

    function grantVersion(uint64 number, bytes32 composeHash, uint64 supersedes, uint64 sunset) external {
        _grantVersion(number, composeHash, supersedes, sunset);
    }

    function _grantVersion(uint64 number, bytes32 composeHash, uint64 supersedes, uint64 sunset) private {
        bytes memory data = abi.encode(_version(number, composeHash, supersedes, sunset));
        _grant(_action(IUpgradeOperator.Kind.Version, address(app), data));
    }

    function _sunset(uint64 number, uint256 time) private view returns (IUpgradeOperator.Action memory) {
        return _action(IUpgradeOperator.Kind.Sunset, address(app), abi.encode(number, time));
    }
}
