// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {ERC1967Proxy} from "@openzeppelin/contracts/proxy/ERC1967/ERC1967Proxy.sol";
import {AppAuth} from "../../../contracts/AppAuth.sol";
import {KmsAuth} from "../../../contracts/KmsAuth.sol";
import {UpgradeOperator} from "../../../contracts/UpgradeOperator.sol";
import {IAppAuth, IAppAuthPolicy} from "../../../contracts/interfaces/IAppAuth.sol";
import {IUpgradeOperator} from "../../../contracts/interfaces/IUpgradeOperator.sol";
import {ForgeTest} from "./Forge.sol";

/// @title An operator that owns a KmsAuth and an AppAuth, and short ways to speak to it.
abstract contract World is ForgeTest {
    address internal constant OWNER = address(0xA11CE);
    address internal constant GUARDIAN = address(0x6A4D1A);
    address internal constant STRANGER = address(0x57A6E);
    uint256 internal constant START = 1_800_000_000;
    uint256 internal constant WINDOW = 14 days;
    bytes32 internal constant OS_IMAGE = keccak256("os image");
    bytes32 internal constant COMPOSE = keccak256("compose");
    bytes internal constant ON = abi.encode(uint256(1));

    UpgradeOperator internal operator;
    KmsAuth internal kms;
    AppAuth internal app;

    function _build(uint48 policy, uint48 roles, uint48 upgrades) internal {
        vm.warp(START);
        operator = new UpgradeOperator(OWNER, GUARDIAN, IUpgradeOperator.Delays(policy, roles, upgrades));
        bytes memory setUpKms = abi.encodeCall(KmsAuth.initialize, (address(operator), address(0)));
        kms = KmsAuth(address(new ERC1967Proxy(address(new KmsAuth()), setUpKms)));
        app = _newApp();
        kms.registerApp(address(app));
    }

    /// @dev Owned by the operator; nothing is allowed, and the TCB must be up to date.
    function _newApp() internal returns (AppAuth) {
        bytes memory setUpApp = abi.encodeWithSignature(
            "initialize(address,bool,bool,bool,bytes32,bytes32)", address(operator), false, true, false, 0, 0
        );
        return AppAuth(address(new ERC1967Proxy(address(new AppAuth()), setUpApp)));
    }

    function _action(IUpgradeOperator.Kind kind, address target, bytes memory data)
        internal
        pure
        returns (IUpgradeOperator.Action memory)
    {
        return IUpgradeOperator.Action(kind, target, data);
    }

    function _allowCompose(bytes32 hash) internal view returns (IUpgradeOperator.Action memory) {
        return _action(IUpgradeOperator.Kind.ComposeHash, address(app), abi.encode(hash));
    }

    function _list(IUpgradeOperator.Action memory only) internal pure returns (IUpgradeOperator.Action[] memory list) {
        list = new IUpgradeOperator.Action[](1);
        list[0] = only;
    }

    function _content(IUpgradeOperator.Action[] memory actions, IUpgradeOperator.Action[] memory rollback)
        internal
        view
        returns (IUpgradeOperator.Content memory)
    {
        return
            IUpgradeOperator.Content(actions, rollback, operator.codeHashesOf(actions, rollback), "https://x.example");
    }

    function _content(IUpgradeOperator.Action memory only) internal view returns (IUpgradeOperator.Content memory) {
        return _content(_list(only), new IUpgradeOperator.Action[](0));
    }

    function _propose(IUpgradeOperator.Content memory content) internal returns (bytes32) {
        vm.prank(OWNER);
        return operator.propose(content);
    }

    function _executes(bytes32 id, IUpgradeOperator.Content memory content) internal returns (bool done) {
        vm.prank(STRANGER);
        (done,) = address(operator).call(abi.encodeCall(IUpgradeOperator.execute, (id, content)));
    }

    /// @dev Propose, wait, execute.
    function _grant(IUpgradeOperator.Action memory action) internal {
        IUpgradeOperator.Content memory content = _content(action);
        bytes32 id = _propose(content);
        vm.warp(operator.proposal(id).readyAt);
        operator.execute(id, content);
    }

    function _deny(address by, IUpgradeOperator.Action memory action) internal {
        vm.prank(by);
        operator.deny(_list(action));
    }

    function _version(uint64 number, bytes32 composeHash, uint64 supersedes, uint64 sunset)
        internal
        pure
        returns (IAppAuthPolicy.Version memory version)
    {
        version.number = number;
        version.composeHash = composeHash;
        version.osImageHashes = new bytes32[](1);
        version.osImageHashes[0] = OS_IMAGE;
        version.supersedes = supersedes;
        version.sunset = sunset;
    }

    function _boot(bytes32 composeHash, bytes32 device) internal view returns (IAppAuth.AppBootInfo memory boot) {
        boot.appId = address(app);
        boot.composeHash = composeHash;
        boot.osImageHash = OS_IMAGE;
        boot.deviceId = device;
        boot.tcbStatus = "UpToDate";
    }
}
