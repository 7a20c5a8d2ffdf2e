// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

/// @title When a grant becomes real: at least 48 hours after everybody could read it.
/// @dev This contract is the owner of a KmsAuth and of AppAuths. It has two paths and no third:
/// - grant: the owner proposes typed actions; after the delay anybody may execute them, for 14 days; until they are
///   executed, owner or guardian may cancel them.
/// - deny: owner or guardian take a grant back at once. A denial also stops every grant of the same that was proposed
///   up to then; it can be granted anew, by a new proposal.
/// @dev The owner cannot shorten the delay, edit a proposal, execute early, call anything but the functions behind
/// `Kind`, send ETH or delegatecall, hand on the contracts it owns, or renounce.
/// @dev The guardian can only cancel and deny. It can cancel its own replacement: a guardian gone bad stops every
/// grant, but causes none.
/// @dev This contract is no proxy: its code never changes. Its owner may be any account: a key, a Safe, a Governor.
interface IUpgradeOperator {
    /// @notice What an action changes. `value` of an action, by kind:
    /// - ComposeHash, Device (AppAuth), OsImage, KmsAggregatedMr, KmsDevice (KmsAuth): the hash or id itself;
    /// - AnyDevice, OutdatedTcb (AppAuth): 1. Granting lets every device, or any TCB status, in; denying shuts it out;
    /// - GatewayAppId (KmsAuth): the gateway's app id, an address. Grant only;
    /// - AppImplementation (KmsAuth): address of the code for new apps. Grant only;
    /// - Guardian (this contract): address of the new guardian. Grant only;
    /// - ContractUpgrades (AppAuth): 1. Deny only, and for good.
    enum Kind {
        ComposeHash,
        Device,
        AnyDevice,
        OutdatedTcb,
        OsImage,
        KmsAggregatedMr,
        KmsDevice,
        GatewayAppId,
        AppImplementation,
        Guardian,
        ContractUpgrades
    }

    /// @notice One change: of what kind, in which contract, of which value.
    struct Action {
        Kind kind;
        address target;
        bytes32 value;
    }

    /// @notice Where a proposal stands; derived from its times and outcome.
    enum State {
        Unset,
        Waiting,
        Ready,
        Executed,
        Cancelled,
        Expired
    }

    /// @notice What is kept of a proposal. Its content is in `ProposalQueued`; its id is the digest of it.
    struct Proposal {
        uint64 nonce;
        uint48 proposedAt;
        uint48 readyAt;
        bool executed;
        bool cancelled;
    }

    /// @notice The delay is shorter than 48 hours, or longer than a year.
    error DelayOutOfRange(uint256 got, uint256 shortest, uint256 longest);

    /// @notice The guardian would be the zero address.
    error GuardianMissing();

    /// @notice Ownership cannot be given up, only handed to somebody who accepts it.
    error RenounceRefused();

    /// @notice The caller is neither owner nor guardian.
    error NeitherOwnerNorGuardian(address caller);

    /// @notice A list of actions is empty or too long.
    error ActionCountOutOfRange(uint256 got, uint256 most);

    /// @notice The content's address is too long.
    error UriTooLong(uint256 got, uint256 most);

    /// @notice The target is not a contract that this operator owns (for Guardian: not this operator).
    error TargetNotGoverned(Kind kind, address target);

    /// @notice The value is zero or has not the form its kind wants.
    error ValueMalformed(Kind kind, bytes32 value);

    /// @notice Actions of this kind can only be denied.
    error NotGrantable(Kind kind);

    /// @notice Actions of this kind cannot be denied.
    error NotDeniable(Kind kind);

    /// @notice The proposal is not in the state that this call needs.
    error UnexpectedState(bytes32 id, State got, State want);

    /// @notice Only a Waiting or Ready proposal can be cancelled.
    error NotPending(bytes32 id, State got);

    /// @notice The actions and address given are not those that were proposed.
    error ContentMismatch(bytes32 id, bytes32 got);

    /// @notice The same was denied at `deniedAt`, not before it was proposed.
    error DeniedSince(Kind kind, address target, bytes32 value, uint256 deniedAt);

    /// @notice `by` proposed `actions`; anybody may execute them from `readyAt` on, before `expiresAt`.
    event ProposalQueued(
        bytes32 indexed id,
        address indexed by,
        uint256 nonce,
        uint256 readyAt,
        uint256 expiresAt,
        Action[] actions,
        string uri
    );

    /// @notice The actions of proposal `id` are in force; `by` only sent the transaction.
    event ProposalExecuted(bytes32 indexed id, address indexed by);

    /// @notice Proposal `id` will never be executed.
    event ProposalCancelled(bytes32 indexed id, address indexed by);

    /// @notice `by` took a grant back, and stopped what was proposed of it.
    event ActionDenied(address indexed by, address indexed target, bytes32 indexed value, Kind kind);

    /// @notice Who may cancel and deny besides the owner.
    event GuardianChanged(address indexed previous, address indexed current);

    /// @notice Owner: announce actions and where their full content can be read.
    /// @dev The earliest time is fixed here. Equal content proposed twice makes two proposals.
    /// @param actions 1 to 16 of them, executed together in this order or not at all.
    /// @param uri Where people find what the hashes stand for; at most 512 bytes, checked by nobody here.
    /// @return id keccak256 of chain id, this contract, nonce, actions and uri.
    function propose(Action[] calldata actions, string calldata uri) external returns (bytes32 id);

    /// @notice Owner or guardian: stop a proposal that is Waiting or Ready.
    function cancel(bytes32 id) external;

    /// @notice Owner or guardian: take grants back at once.
    /// @dev Warning: keys already released are not taken back.
    function deny(Action[] calldata actions) external;

    /// @notice Anybody: put a Ready proposal in force, once. The delay protects, not the caller.
    /// @dev The content is given again, because only its digest is stored.
    function execute(bytes32 id, Action[] calldata actions, string calldata uri) external;

    /// @notice The shortest delay there can be: 48 hours.
    function MIN_DELAY() external view returns (uint256);

    /// @notice Seconds between proposal and earliest execution; never changes.
    function delay() external view returns (uint256);

    /// @notice Who may cancel and deny besides the owner.
    function guardian() external view returns (address);

    /// @notice Where a proposal stands now. It is Ready from `readyAt` on, and Expired from 14 days later on.
    function stateOf(bytes32 id) external view returns (State);

    /// @notice What is kept of a proposal; all zero when there is none of this id.
    function proposal(bytes32 id) external view returns (Proposal memory);

    /// @notice How many proposals there ever were.
    function proposalCount() external view returns (uint256);

    /// @notice Ids in order of proposal, from position `start` on: at most `count`, and at most 100.
    function proposalIds(uint256 start, uint256 count) external view returns (bytes32[] memory);

    /// @notice When exactly this action was last denied; zero for never.
    function deniedAt(Action calldata action) external view returns (uint256);

    /// @notice The id that this content has, or would have, as proposal number `nonce`.
    function proposalId(uint256 nonce, Action[] calldata actions, string calldata uri) external view returns (bytes32);
}
