// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {Ownable, Ownable2Step} from "@openzeppelin/contracts/access/Ownable2Step.sol";
import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {Strings} from "@openzeppelin/contracts/utils/Strings.sol";
import {IAppAuthPolicy} from "./interfaces/IAppAuth.sol";
import {IKmsAuth} from "./interfaces/IKmsAuth.sol";
import {IUpgradeOperator} from "./interfaces/IUpgradeOperator.sol";

/// @title The only owner of KmsAuth and of governed apps; the words are in IUpgradeOperator.
contract UpgradeOperator is IUpgradeOperator, Ownable2Step {
    /// @inheritdoc IUpgradeOperator
    uint256 public constant MIN_DELAY = 48 hours;
    /// @notice The longest delay there can be.
    uint256 public constant MAX_DELAY = 365 days;
    /// @notice How long a Ready proposal can be executed.
    uint256 public constant WINDOW = 14 days;
    /// @notice How many actions a proposal or a denial may hold.
    uint256 public constant MAX_ACTIONS = 16;
    /// @notice How long a content's address may be.
    uint256 public constant MAX_URI_BYTES = 512;
    /// @notice How many ids `proposalIds` gives at once.
    uint256 public constant MAX_PAGE = 100;

    bytes32 private constant ON = bytes32(uint256(1));

    /// @inheritdoc IUpgradeOperator
    uint256 public immutable delay;

    /// @inheritdoc IUpgradeOperator
    address public guardian;
    bytes32[] private _ids;
    mapping(bytes32 id => Proposal) private _proposals;
    mapping(bytes32 actionHash => uint256 time) private _deniedAt;

    /// @param owner_ Who may propose, cancel and deny; not zero.
    /// @param guardian_ Who else may cancel and deny; not zero, the owner itself where there is nobody else.
    /// @param delay_ Seconds between proposal and earliest execution, from 48 hours to 365 days.
    constructor(address owner_, address guardian_, uint256 delay_) Ownable(owner_) {
        require(guardian_ != address(0), GuardianMissing());
        require(delay_ >= MIN_DELAY && delay_ <= MAX_DELAY, DelayOutOfRange(delay_, MIN_DELAY, MAX_DELAY));

        delay = delay_;
        _setGuardian(guardian_);
    }

    modifier onlyOwnerOrGuardian() {
        require(msg.sender == owner() || msg.sender == guardian, NeitherOwnerNorGuardian(msg.sender));
        _;
    }

    /// @inheritdoc IUpgradeOperator
    function propose(Action[] calldata actions, string calldata uri) external onlyOwner returns (bytes32 id) {
        _checkCount(actions);
        require(bytes(uri).length <= MAX_URI_BYTES, UriTooLong(bytes(uri).length, MAX_URI_BYTES));
        for (uint256 i = 0; i < actions.length; i++) {
            require(actions[i].kind != Kind.ContractUpgrades, NotGrantable(actions[i].kind));
            _checkAction(actions[i]);
        }

        uint256 nonce = _ids.length;
        uint256 readyAt = block.timestamp + delay;
        id = proposalId(nonce, actions, uri);
        _ids.push(id);
        _proposals[id] = Proposal(uint64(nonce), uint48(block.timestamp), uint48(readyAt), false, false);

        emit ProposalQueued(id, msg.sender, nonce, readyAt, readyAt + WINDOW, actions, uri);
    }

    /// @inheritdoc IUpgradeOperator
    function cancel(bytes32 id) external onlyOwnerOrGuardian {
        State state = stateOf(id);
        require(state == State.Waiting || state == State.Ready, NotPending(id, state));

        _proposals[id].cancelled = true;

        emit ProposalCancelled(id, msg.sender);
    }

    /// @inheritdoc IUpgradeOperator
    function deny(Action[] calldata actions) external onlyOwnerOrGuardian {
        _checkCount(actions);
        for (uint256 i = 0; i < actions.length; i++) {
            _checkAction(actions[i]);
            _deniedAt[_hash(actions[i])] = block.timestamp;
            emit ActionDenied(msg.sender, actions[i].target, actions[i].value, actions[i].kind);
            _deny(actions[i]);
        }
    }

    /// @notice Always refuses.
    function renounceOwnership() public pure override {
        revert RenounceRefused();
    }

    /// @inheritdoc IUpgradeOperator
    function execute(bytes32 id, Action[] calldata actions, string calldata uri) external {
        State state = stateOf(id);
        require(state == State.Ready, UnexpectedState(id, state, State.Ready));
        Proposal storage record = _proposals[id];
        bytes32 got = proposalId(record.nonce, actions, uri);
        require(got == id, ContentMismatch(id, got));
        for (uint256 i = 0; i < actions.length; i++) {
            _checkNotDenied(actions[i], record.proposedAt);
        }

        record.executed = true;

        emit ProposalExecuted(id, msg.sender);

        for (uint256 i = 0; i < actions.length; i++) {
            _grant(actions[i]);
        }
    }

    /// @inheritdoc IUpgradeOperator
    function stateOf(bytes32 id) public view returns (State) {
        Proposal storage record = _proposals[id];
        if (record.proposedAt == 0) return State.Unset;
        if (record.executed) return State.Executed;
        if (record.cancelled) return State.Cancelled;
        if (block.timestamp < record.readyAt) return State.Waiting;
        return block.timestamp < record.readyAt + WINDOW ? State.Ready : State.Expired;
    }

    /// @inheritdoc IUpgradeOperator
    function proposal(bytes32 id) external view returns (Proposal memory) {
        return _proposals[id];
    }

    /// @inheritdoc IUpgradeOperator
    function proposalCount() external view returns (uint256) {
        return _ids.length;
    }

    /// @inheritdoc IUpgradeOperator
    function proposalIds(uint256 start, uint256 count) external view returns (bytes32[] memory page) {
        uint256 left = start < _ids.length ? _ids.length - start : 0;
        page = new bytes32[](Math.min(left, Math.min(count, MAX_PAGE)));
        for (uint256 i = 0; i < page.length; i++) {
            page[i] = _ids[start + i];
        }
    }

    /// @inheritdoc IUpgradeOperator
    function deniedAt(Action calldata action) external view returns (uint256) {
        return _deniedAt[_hash(action)];
    }

    /// @inheritdoc IUpgradeOperator
    function proposalId(uint256 nonce, Action[] calldata actions, string calldata uri) public view returns (bytes32) {
        return keccak256(abi.encode(block.chainid, address(this), nonce, actions, uri));
    }

    function _grant(Action calldata action) private {
        (Kind kind, address target, bytes32 value) = (action.kind, action.target, action.value);
        if (kind == Kind.ComposeHash) IAppAuthPolicy(target).addComposeHash(value);
        else if (kind == Kind.Device) IAppAuthPolicy(target).addDevice(value);
        else if (kind == Kind.AnyDevice) IAppAuthPolicy(target).setAllowAnyDevice(true);
        else if (kind == Kind.OutdatedTcb) IAppAuthPolicy(target).setRequireTcbUpToDate(false);
        else if (kind == Kind.OsImage) IKmsAuth(target).addOsImageHash(value);
        else if (kind == Kind.KmsAggregatedMr) IKmsAuth(target).addKmsAggregatedMr(value);
        else if (kind == Kind.KmsDevice) IKmsAuth(target).addKmsDevice(value);
        else if (kind == Kind.GatewayAppId) IKmsAuth(target).setGatewayAppId(Strings.toHexString(_address(value)));
        else if (kind == Kind.AppImplementation) IKmsAuth(target).setAppImplementation(_address(value));
        else if (kind == Kind.Guardian) _setGuardian(_address(value));
        else revert NotGrantable(kind);
    }

    function _deny(Action calldata action) private {
        (Kind kind, address target, bytes32 value) = (action.kind, action.target, action.value);
        if (kind == Kind.ComposeHash) IAppAuthPolicy(target).removeComposeHash(value);
        else if (kind == Kind.Device) IAppAuthPolicy(target).removeDevice(value);
        else if (kind == Kind.AnyDevice) IAppAuthPolicy(target).setAllowAnyDevice(false);
        else if (kind == Kind.OutdatedTcb) IAppAuthPolicy(target).setRequireTcbUpToDate(true);
        else if (kind == Kind.OsImage) IKmsAuth(target).removeOsImageHash(value);
        else if (kind == Kind.KmsAggregatedMr) IKmsAuth(target).removeKmsAggregatedMr(value);
        else if (kind == Kind.KmsDevice) IKmsAuth(target).removeKmsDevice(value);
        else if (kind == Kind.ContractUpgrades) IAppAuthPolicy(target).disableUpgrades();
        else revert NotDeniable(kind);
    }

    function _setGuardian(address guardian_) private {
        emit GuardianChanged(guardian, guardian_);
        guardian = guardian_;
    }

    function _checkCount(Action[] calldata actions) private pure {
        require(
            actions.length > 0 && actions.length <= MAX_ACTIONS, ActionCountOutOfRange(actions.length, MAX_ACTIONS)
        );
    }

    function _checkAction(Action calldata action) private view {
        require(_isGoverned(action), TargetNotGoverned(action.kind, action.target));
        require(_isWellFormed(action.kind, action.value), ValueMalformed(action.kind, action.value));
    }

    function _checkNotDenied(Action calldata action, uint256 proposedAt) private view {
        uint256 time = _deniedAt[_hash(action)];
        require(time < proposedAt, DeniedSince(action.kind, action.target, action.value, time));
    }

    function _isGoverned(Action calldata action) private view returns (bool) {
        if (action.kind == Kind.Guardian) return action.target == address(this);
        return action.target.code.length > 0 && Ownable(action.target).owner() == address(this);
    }

    function _isWellFormed(Kind kind, bytes32 value) private view returns (bool) {
        if (kind == Kind.AnyDevice || kind == Kind.OutdatedTcb || kind == Kind.ContractUpgrades) return value == ON;
        if (kind == Kind.AppImplementation) return _isAddress(value) && _address(value).code.length > 0;
        if (kind == Kind.GatewayAppId || kind == Kind.Guardian) return _isAddress(value);
        return value != 0;
    }

    function _isAddress(bytes32 value) private pure returns (bool) {
        return value != 0 && uint256(value) <= type(uint160).max;
    }

    function _address(bytes32 value) private pure returns (address) {
        return address(uint160(uint256(value)));
    }

    function _hash(Action calldata action) private pure returns (bytes32) {
        return keccak256(abi.encode(action));
    }
}
