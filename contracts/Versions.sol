// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {IAppAuthPolicy} from "./interfaces/IAppAuth.sol";
import {IGoverned} from "./interfaces/IGoverned.sol";

/// @title The form that every version must have, whatever its number; the words are in IAppAuthPolicy.
library Versions {
    bytes32 internal constant COMPOSE_HASH = keccak256("compose-hash");
    bytes32 internal constant OS_IMAGE = keccak256("os-image");
    bytes32 internal constant REGISTERS = keccak256("registers");
    uint256 internal constant MOST = 8;
    uint256 internal constant REGISTER_BYTES = 48;
    uint64 internal constant HIGHEST = type(uint48).max;

    function check(IAppAuthPolicy.Version calldata version) internal pure {
        (uint64 number, uint64 supersedes, uint64 sunset) = (version.number, version.supersedes, version.sunset);
        require(
            (supersedes == 0) == (sunset == 0) && supersedes < number,
            IAppAuthPolicy.SunsetMisplaced(number, supersedes, sunset)
        );
        require(number <= HIGHEST, IAppAuthPolicy.NumberTooHigh(number, HIGHEST));
        require(version.composeHash != 0, IGoverned.ZeroRefused(COMPOSE_HASH));
        _check(version.osImageHashes);
        _check(version.registers);
    }

    /// @dev What registers are known under; the same registers may belong to several configurations.
    function key(bytes32 composeHash, IAppAuthPolicy.Registers calldata registers) internal pure returns (bytes32) {
        return keccak256(abi.encode(composeHash, registers));
    }

    function _check(bytes32[] calldata osImageHashes) private pure {
        _checkCount(OS_IMAGE, osImageHashes.length, 1);
        for (uint256 i = 0; i < osImageHashes.length; i++) {
            require(osImageHashes[i] != 0, IGoverned.ZeroRefused(OS_IMAGE));
        }
    }

    function _check(IAppAuthPolicy.Registers[] calldata sets) private pure {
        _checkCount(REGISTERS, sets.length, 0);
        for (uint256 i = 0; i < sets.length; i++) {
            _check(sets[i]);
        }
    }

    function _check(IAppAuthPolicy.Registers calldata registers) private pure {
        _checkRegister(registers.mrtd);
        _checkRegister(registers.rtmr0);
        _checkRegister(registers.rtmr1);
        _checkRegister(registers.rtmr2);
        if (registers.rtmr3.length != 0) _checkRegister(registers.rtmr3);
    }

    function _checkRegister(bytes calldata register) private pure {
        require(register.length == REGISTER_BYTES, IAppAuthPolicy.RegisterLength(register.length));
    }

    function _checkCount(bytes32 policy, uint256 got, uint256 fewest) private pure {
        require(got >= fewest && got <= MOST, IAppAuthPolicy.CountOutOfRange(policy, got, fewest, MOST));
    }
}
