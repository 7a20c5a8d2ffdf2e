// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {ERC1967Proxy} from "@openzeppelin/contracts/proxy/ERC1967/ERC1967Proxy.sol";
import {KmsAuth} from "../../contracts/KmsAuth.sol";
import {UpgradeOperator} from "../../contracts/UpgradeOperator.sol";
import {IAppAuth} from "../../contracts/interfaces/IAppAuth.sol";
import {IUpgradeOperator} from "../../contracts/interfaces/IUpgradeOperator.sol";
import {ForgeTest} from "./support/Forge.sol";

/// @title An app contract that does to whoever asks what the test told it to.
contract HostileApp {
    enum Manner {
        Return,
        Revert,
        Burn,
        Invalid
    }

    Manner private _manner;
    bytes private _words;

    function behave(Manner manner, bytes calldata words) external {
        _manner = manner;
        _words = words;
    }

    fallback() external {
        if (_manner == Manner.Burn) while (true) {}
        if (_manner == Manner.Invalid) assert(false);
        bytes memory words = _words;
        bool reverts = _manner == Manner.Revert;
        assembly {
            if reverts { revert(add(words, 32), mload(words)) }
            return(add(words, 32), mload(words))
        }
    }
}

/// @title P28: whatever a registered app's contract does, the answer is (false, reason), no revert and no grant.
contract HostileAppsTest is ForgeTest {
    bytes32 private constant OS_IMAGE = keccak256("os image");
    KmsAuth private _kms;
    HostileApp private _app;

    function setUp() public {
        bytes memory setUpCall = abi.encodeCall(KmsAuth.initialize, (address(this), address(0)));
        _kms = KmsAuth(address(new ERC1967Proxy(address(new KmsAuth()), setUpCall)));
        _kms.addOsImageHash(OS_IMAGE);
        _app = new HostileApp();
        _kms.registerApp(address(_app));
    }

    /// @dev Bytes that are not an answer in form are no answer.
    function testFuzz_P28_garbageGrantsNothing(bytes calldata words) public {
        _app.behave(HostileApp.Manner.Return, words);

        (bool isAllowed, string memory reason) = _ask();

        assert(!isAllowed && bytes(reason).length > 0);
    }

    /// @dev Three words, each near what a true answer has: only a true answer is one.
    function testFuzz_P28_almostAnAnswerGrantsNothing(uint256 flag, uint256 offset, uint256 length, uint16 tail)
        public
    {
        flag = flag % 4 == 3 ? flag : flag % 4;
        offset = offset % 2 == 0 ? 64 : offset % 160;
        length = length % 2 == 0 ? length % 160 : length;
        bytes memory words = abi.encodePacked(flag, offset, length, new bytes(tail % 1100));
        _app.behave(HostileApp.Manner.Return, words);

        (bool isAllowed,) = _ask();

        bool inForm = flag == 1 && offset == 64 && length <= tail % 1100 && words.length <= 1024;
        assert(isAllowed == inForm);
    }

    /// @dev A refusal passes through with its text.
    function testFuzz_P28_aRefusalPasses(bytes calldata text) public {
        vm.assume(text.length <= 900);
        _app.behave(HostileApp.Manner.Return, abi.encode(false, text));

        (bool isAllowed, string memory reason) = _ask();

        assert(!isAllowed && keccak256(bytes(reason)) == keccak256(text));
    }

    /// @dev Reverting with any words, panicking and burning the gas are no answer, and cost a bounded sum.
    function testFuzz_P28_noAnswerGrantsNothing(uint8 manner, bytes calldata words) public {
        _app.behave(HostileApp.Manner(uint8(_within(manner, 1, 3))), words);
        uint256 before = gasleft();

        (bool isAllowed, string memory reason) = _ask();

        assert(!isAllowed && keccak256(bytes(reason)) == keccak256("App contract did not answer"));
        assert(before - gasleft() < 1_200_000);
    }

    /// @dev Neither does an address without code, nor one with arbitrary code.
    function testFuzz_P28_anyCodeAtTheAddress(bytes calldata code) public {
        vm.assume(code.length < 2048 && (code.length < 1 || code[0] != 0xef));
        vm.etch(address(_app), code);

        (bool isAllowed, string memory reason) = _ask();

        assert(!isAllowed && bytes(reason).length > 0);
    }

    /// @dev The operator's own answer to the replicator neither fails nor grants, whichever of the two is hostile.
    function testFuzz_P28_operatorGrantsNothing(uint8 manner, bytes calldata words, bool asKms) public {
        IUpgradeOperator.Delays memory delays = IUpgradeOperator.Delays(48 hours, 48 hours, 48 hours);
        UpgradeOperator operator = new UpgradeOperator(address(this), address(this), delays);
        _app.behave(HostileApp.Manner(uint8(_within(manner, 0, 3))), words);
        IUpgradeOperator.Workload memory workload;
        workload.app = address(_app);
        workload.kmsAuth = asKms ? address(_app) : address(_kms);
        workload.osImageHash = OS_IMAGE;

        (bool isAllowed, string memory reason) = operator.isAllowed(workload);

        assert(!isAllowed && bytes(reason).length > 0);
    }

    function _ask() private view returns (bool, string memory) {
        IAppAuth.AppBootInfo memory boot;
        boot.appId = address(_app);
        boot.osImageHash = OS_IMAGE;
        return _kms.isAppAllowed(boot);
    }
}
