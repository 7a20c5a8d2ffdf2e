// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

/// @title What forge lets a test do to the chain; as much of it as we use.
interface Vm {
    function assume(bool condition) external pure;
    function etch(address target, bytes calldata code) external;
    function expectRevert() external;
    function expectRevert(bytes calldata data) external;
    function load(address target, bytes32 slot) external view returns (bytes32);
    function getRecordedLogs() external returns (Log[] memory);
    function prank(address caller) external;
    function recordLogs() external;
    function warp(uint256 time) external;

    struct Log {
        bytes32[] topics;
        bytes data;
        address emitter;
    }
}

/// @title A test: forge's powers, and which contracts and functions an invariant run may call.
abstract contract ForgeTest {
    Vm internal constant vm = Vm(0x7109709ECfa91a80626fF3989D68f67F5b1DD12D);

    struct FuzzSelector {
        address addr;
        bytes4[] selectors;
    }

    FuzzSelector[] private _selectors;
    address[] private _targets;

    function targetContracts() external view returns (address[] memory) {
        return _targets;
    }

    function targetSelectors() external view returns (FuzzSelector[] memory) {
        return _selectors;
    }

    function _aimAt(address handler, bytes4[] memory selectors) internal {
        _targets.push(handler);
        _selectors.push(FuzzSelector(handler, selectors));
    }

    /// @dev `raw` folded into [low, high].
    function _within(uint256 raw, uint256 low, uint256 high) internal pure returns (uint256) {
        return low + raw % (high - low + 1);
    }
}
