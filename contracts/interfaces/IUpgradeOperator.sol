// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {IAppAuthPolicy} from "./IAppAuth.sol";

/// @title When a grant becomes real: at least 48 hours after everybody could read it.
/// @dev This contract is the owner of a KmsAuth and of AppAuths. It has two paths and no third:
/// - grant: the owner proposes typed actions; after the delay anybody may execute them, for 14 days; until they are
///   executed, owner or guardian may cancel them.
/// - deny: owner or guardian take a grant back at once. A denial also stops every grant of the same that was proposed
///   up to then; it can be granted anew, by a new proposal.
/// @dev A proposal may carry its own rollback: actions announced with it, which owner and guardian together may run
/// within 14 days after it was executed. Nothing in a rollback is younger than the notice of its proposal.
/// @dev The owner cannot shorten the delay but by a proposal that waits the old one, edit a proposal, execute early,
/// call anything but the functions behind `Kind`, send ETH or delegatecall, hand on the contracts it owns, hand on its
/// own role but by a proposal, or renounce.
/// @dev The guardian can only cancel and deny, and agree to a rollback. It cannot deny for good: `ContractUpgrades` is
/// the owner's. Everything else it denies can be granted anew, and a freeze ends by itself. A guardian gone bad stops
/// every grant, but causes none, and not for ever: it cannot cancel a proposal of kind `ForcedGuardian`, which waits
/// at least 7 days and holds nothing else.
/// @dev Whoever stole the owner's key can propose a `ForcedGuardian`, too. The guardian then has those 7 days, or the
/// delay of roles where that is longer, to warn everybody and to deny; the rightful owner, with the same key, can
/// cancel. Nothing is granted by it: what the thief wants to allow waits its own 48 hours or more after it was
/// proposed, and as long as the guardian is in office it cancels that. Owners who fear a stolen owner more than a
/// stolen guardian make the delay of roles longer.
/// @dev This contract is no proxy: its code never changes. Its owner may be any account: a key, a Safe, a Governor.
interface IUpgradeOperator {
    /// @notice What an action changes. Its `data` is one word, or where it says so the ABI encoding of more:
    /// - ComposeHash, Device (AppAuth), OsImage, KmsAggregatedMr, KmsDevice (KmsAuth): the hash or id itself;
    /// - AnyDevice (AppAuth): 1. Granting lets every device in; denying shuts all but the listed ones out;
    /// - OutdatedTcb (AppAuth): granting tolerates any TCB status before the time given, at most 90 days after
    ///   execution; denying (1) requires an up-to-date TCB;
    /// - GatewayAppId (KmsAuth): the gateway's app id, an address. Grant only;
    /// - AppImplementation (KmsAuth): address of the code for new apps. Grant only;
    /// - Guardian, Owner (this contract): address of the new one, who must accept within 14 days. Grant only;
    /// - ContractUpgrades (AppAuth, KmsAuth): 1. Deny only, by the owner only, and for good;
    /// - Version (AppAuth): an `IAppAuthPolicy.Version`. Grant only; deny its compose hash or its sunset instead;
    /// - Sunset (AppAuth): version number and time. Granting has the version end later (time zero: never), unless its
    ///   end was set after the proposal; denying has it end earlier, at once if the time is not in the future;
    /// - App (KmsAuth): the app's address. Granting ends its freeze; denying freezes it for 7 days, and again only 7
    ///   days after the end of the last freeze;
    /// - FreezeRenewal (KmsAuth): the app's address. Freezes it for 7 days, whenever the last freeze was. Grant only;
    /// - Delay (this contract): a `DelayClass` and seconds. Grant only, after the delay that it changes;
    /// - ImplementationUpgrade (AppAuth, KmsAuth): address of the code that the proxy runs from now on. Grant only;
    /// - FreezeForGood (AppAuth): 1. Rules out every further grant to the app. Grant only;
    /// - KmsInfo (KmsAuth): an `IKmsAuth.KmsInfo`. Grant only;
    /// - KeyEpoch (KmsAuth): number of the next epoch, and for how many seconds the one before is served on, from 1 to
    ///   90 days. Grant only;
    /// - ForcedGuardian (this contract): as Guardian, but the guardian cannot cancel it. Alone in its proposal. Grant
    ///   only;
    /// - Genesis (AppAuth): fingerprint and digest of the evidence, as in `genesisOf`. Grant only, and once.
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
        ContractUpgrades,
        Version,
        Sunset,
        App,
        FreezeRenewal,
        Owner,
        Delay,
        ImplementationUpgrade,
        FreezeForGood,
        KmsInfo,
        KeyEpoch,
        ForcedGuardian,
        Genesis
    }

    /// @notice How long an action must wait, by its kind:
    /// - Roles: Owner, Guardian, ForcedGuardian (that one at least 7 days);
    /// - Upgrades: ImplementationUpgrade, AppImplementation, FreezeForGood, KeyEpoch;
    /// - for Delay, the class that it changes;
    /// - Policy: everything else.
    /// @dev Policy and Roles are never longer than Upgrades.
    enum DelayClass {
        Policy,
        Roles,
        Upgrades
    }

    /// @notice One change: of what kind, in which contract, and what exactly.
    struct Action {
        Kind kind;
        address target;
        bytes data;
    }

    /// @notice All of a proposal that its id is the digest of.
    /// @param actions 1 to 16 of them, executed together in this order or not at all.
    /// @param rollback Up to 16 that undo them; none if no rollback is staged.
    /// @param codeHashes Two for each action, of `actions` and then of `rollback`: that of the target, and that of the
    /// account that its data names (zero where the kind names none). An account without code has zero.
    /// @param uri Where people find what the hashes stand for; at most 512 bytes, checked by nobody here.
    struct Content {
        Action[] actions;
        Action[] rollback;
        bytes32[] codeHashes;
        string uri;
    }

    /// @notice Where a proposal stands; derived from its times and outcome.
    enum State {
        Unset,
        Waiting,
        Ready,
        Executed,
        Cancelled,
        Expired,
        RolledBack
    }

    /// @notice What is kept of a proposal. Its content is in `ProposalQueued`; its id is the digest of it.
    /// @param executedAt When it was executed; zero if it was not.
    /// @param forced Whether it is of kind `ForcedGuardian`: only the owner can cancel it.
    struct Proposal {
        uint64 nonce;
        uint48 proposedAt;
        uint48 readyAt;
        uint48 executedAt;
        bool cancelled;
        bool rolledBack;
        bool forced;
    }

    /// @notice Seconds between proposal and earliest execution, for each class.
    struct Delays {
        uint48 policy;
        uint48 roles;
        uint48 upgrades;
    }

    /// @notice Who was named for a role, and before when it must accept; all zero for nobody.
    struct Nomination {
        address account;
        uint48 expiresAt;
    }

    /// @notice Where the custody of an app's secure file begins; all zero if it was not recorded.
    /// @param fingerprint Of the public part of the secret that was made inside the first node.
    /// @param evidence Digest of what that node said about itself and the secret; checked by nobody here.
    /// @param recordedIn Number of the block in which it was recorded, at `recordedAt`.
    struct Genesis {
        bytes32 fingerprint;
        bytes32 evidence;
        uint64 recordedIn;
        uint48 recordedAt;
    }

    /// @notice What a machine runs, for the question whether it may.
    /// @param registers What it measured; all five empty if that is not asked.
    struct Workload {
        address kmsAuth;
        address app;
        bytes32 composeHash;
        bytes32 osImageHash;
        IAppAuthPolicy.Registers registers;
    }

    /// @notice A delay is shorter than 48 hours, or longer than a year.
    error DelayOutOfRange(uint256 got, uint256 shortest, uint256 longest);

    /// @notice The delay of contract upgrades would not be the longest.
    error UpgradesNotLongest(uint256 policy, uint256 roles, uint256 upgrades);

    /// @notice The guardian would be the zero address.
    error GuardianMissing();

    /// @notice Ownership cannot be given up, only handed to somebody who accepts it.
    error RenounceRefused();

    /// @notice Ownership is handed on by a proposal of kind `Owner` only.
    error OnlyByProposal();

    /// @notice The caller is neither owner nor guardian.
    error NeitherOwnerNorGuardian(address caller);

    /// @notice The caller was not named for this role, or too long ago.
    error NotNominated(address caller);

    /// @notice A list of actions is empty or too long.
    error ActionCountOutOfRange(uint256 got, uint256 most);

    /// @notice The content's address is too long.
    error UriTooLong(uint256 got, uint256 most);

    /// @notice There are not two code hashes for each action.
    error CodeHashCount(uint256 got, uint256 want);

    /// @notice The code of `account` is not the one that the content names.
    error CodeChanged(address account, bytes32 got, bytes32 want);

    /// @notice The target is not a contract that this operator owns (for its own kinds: not this operator).
    error TargetNotGoverned(Kind kind, address target);

    /// @notice The contract took the acceptance of its ownership, and is not owned by this operator.
    error NotHandedOver(address target);

    /// @notice The data is zero, or has not exactly the form that its kind wants.
    error DataMalformed(Kind kind, bytes data);

    /// @notice Actions of this kind can only be denied.
    error NotGrantable(Kind kind);

    /// @notice Actions of this kind cannot be denied.
    error NotDeniable(Kind kind);

    /// @notice This is the owner's alone: what could never be granted again, and to cancel what replaces the guardian.
    error NotForGuardian(Kind kind);

    /// @notice An action of this kind must be the only one of its proposal, without a rollback.
    error NotAlone(Kind kind);

    /// @notice The app's genesis was recorded before, and is not replaced.
    error GenesisRecordedAlready(address app, bytes32 fingerprint);

    /// @notice The app was frozen lately; before `from` only a proposal of kind `FreezeRenewal` can freeze it.
    error FreezeTooSoon(address app, uint256 from);

    /// @notice A delay can be lowered no sooner after the proposal than the delay that it has now: from `from` on.
    error LoweredTooSoon(DelayClass class, uint256 from);

    /// @notice The proposal is not in the state that this call needs.
    error UnexpectedState(bytes32 id, State got, State want);

    /// @notice Only a Waiting or Ready proposal can be cancelled.
    error NotPending(bytes32 id, State got);

    /// @notice The content given is not the one that was proposed.
    error ContentMismatch(bytes32 id, bytes32 got);

    /// @notice The same was denied at `deniedAt`, not before it was proposed.
    error DeniedSince(Kind kind, address target, bytes32 subject, uint256 deniedAt);

    /// @notice No rollback was staged with the proposal.
    error NoRollback(bytes32 id);

    /// @notice The rollback could be run before `closedAt` only.
    error RollbackClosed(bytes32 id, uint256 closedAt);

    /// @notice Owner and guardian, as they are now, have not both agreed to the rollback.
    error RollbackNotAgreed(bytes32 id);

    /// @notice A contract that this operator called tried to have it call contracts.
    error Reentered();

    /// @notice The time lies in the past; what was allowed then follows from the events.
    error TimePassed(uint256 got, uint256 current);

    /// @notice `by` proposed `content`; anybody may execute it from `readyAt` on, before `expiresAt`.
    event ProposalQueued(
        bytes32 indexed id, address indexed by, uint256 nonce, uint256 readyAt, uint256 expiresAt, Content content
    );

    /// @notice The actions of proposal `id` are in force; `by` only sent the transaction.
    event ProposalExecuted(bytes32 indexed id, address indexed by);

    /// @notice Proposal `id` will never be executed.
    event ProposalCancelled(bytes32 indexed id, address indexed by);

    /// @notice `by` agrees that the rollback of proposal `id` is run.
    event RollbackAgreed(bytes32 indexed id, address indexed by);

    /// @notice The rollback of proposal `id` is in force; `by` ran it, the other one had agreed.
    event ProposalRolledBack(bytes32 indexed id, address indexed by);

    /// @notice `by` took a grant back, and stopped what was proposed of it; `subject` is what denials of it share.
    event ActionDenied(address indexed by, address indexed target, bytes32 indexed subject, Kind kind, bytes data);

    /// @notice The role `kind` (Owner or Guardian) is `account`'s if it accepts before `expiresAt`.
    event Nominated(Kind kind, address indexed account, uint256 expiresAt);

    /// @notice Who may cancel and deny besides the owner.
    event GuardianChanged(address indexed previous, address indexed current);

    /// @notice Proposals of `class` wait `current` seconds, no longer `previous`.
    event DelayChanged(DelayClass class, uint256 previous, uint256 current);

    /// @notice This operator owns `target` from now on.
    event ContractAdopted(address indexed target);

    /// @notice The custody of `app`'s secure file begins with the secret of this fingerprint, for good.
    event GenesisRecorded(address indexed app, bytes32 fingerprint, bytes32 evidence);

    /// @notice `by` says that a receipt with this digest exists about a secure file of `app`; nothing was checked.
    event ReceiptAnchored(address indexed by, address indexed app, bytes32 indexed digest);

    /// @notice Owner: announce content.
    /// @dev The earliest time is fixed here: the longest delay of all its actions, rollback included, as of now. Equal
    /// content proposed twice makes two proposals. Later changes of delays do not shorten it; a proposal that lowers a
    /// delay must have waited as long as that delay is when it is executed.
    /// @return id keccak256 of chain id, this contract, nonce and content.
    function propose(Content calldata content) external returns (bytes32 id);

    /// @notice Owner: accept the ownership of a KmsAuth or AppAuth whose owner offered it to this operator.
    function adopt(address target) external;

    /// @notice Owner or guardian: stop a proposal that is Waiting or Ready; one of kind `ForcedGuardian` the owner only.
    function cancel(bytes32 id) external;

    /// @notice Owner or guardian: take grants back at once.
    /// @dev Warning: keys already released are not taken back.
    function deny(Action[] calldata actions) external;

    /// @notice Owner or guardian: agree to the rollback of an executed proposal, for the other one to run.
    function agreeToRollback(bytes32 id) external;

    /// @notice Owner or guardian, after the other one agreed: run the rollback within 14 days of the execution, once.
    function rollBack(bytes32 id, Content calldata content) external;

    /// @notice Anybody: put a Ready proposal in force, once. The delay protects, not the caller.
    /// @dev The content is given again, because only its digest is stored.
    function execute(bytes32 id, Content calldata content) external;

    /// @notice Anybody: put the digest of a handover's receipt on record, as an event and nothing else.
    /// @dev Proves that the receipt existed by then and who says so. It is indexed by the sender: whoever looks for the
    /// anchors of a node they know is not disturbed by those of others, however many.
    function anchorReceipt(address app, bytes32 digest) external;

    /// @notice The account named as owner: become it.
    function acceptOwnership() external;

    /// @notice The account named as guardian: become it.
    function acceptGuardian() external;

    /// @notice The shortest delay there can be: 48 hours.
    function MIN_DELAY() external view returns (uint256);

    /// @notice Seconds between proposal and earliest execution, for what is proposed now.
    function delays() external view returns (uint48 policy, uint48 roles, uint48 upgrades);

    /// @notice Seconds that an action would wait if it were proposed now.
    function delayOf(Action calldata action) external view returns (uint256);

    /// @notice Who may cancel and deny besides the owner.
    function guardian() external view returns (address);

    /// @notice Who was named as owner and has not accepted yet.
    function nominatedOwner() external view returns (address account, uint48 expiresAt);

    /// @notice Who was named as guardian and has not accepted yet.
    function nominatedGuardian() external view returns (address account, uint48 expiresAt);

    /// @notice Where a proposal stands now. It is Ready from `readyAt` on, and Expired from 14 days later on.
    function stateOf(bytes32 id) external view returns (State);

    /// @notice What is kept of a proposal; all zero when there is none of this id.
    function proposal(bytes32 id) external view returns (Proposal memory);

    /// @notice Who agreed last to the rollback of a proposal; the zero address for nobody.
    function rollbackAgreedBy(bytes32 id) external view returns (address);

    /// @notice How many proposals there ever were.
    function proposalCount() external view returns (uint256);

    /// @notice Ids in order of proposal, from position `start` on: at most `count`, and at most 100.
    function proposalIds(uint256 start, uint256 count) external view returns (bytes32[] memory);

    /// @notice When what this action is about was last denied; zero for never.
    /// @dev A version shares its compose hash's denials; a sunset is about its version, whatever the time; a TCB status
    /// is about the app.
    function deniedAt(Action calldata action) external view returns (uint256);

    /// @notice The id that this content has, or would have, as proposal number `nonce`.
    function proposalId(uint256 nonce, Content calldata content) external view returns (bytes32);

    /// @notice The code hashes that content of these actions must name if it is proposed now.
    function codeHashesOf(Action[] calldata actions, Action[] calldata rollback)
        external
        view
        returns (bytes32[] memory);

    /// @notice Where the custody of an app's secure file begins.
    /// @dev Only a proposal of kind `Genesis` records it, once. A stranger can record nothing, so nobody occupies an
    /// app; a stolen owner's key cannot either without the notice in which guardian and owner can cancel, which matters
    /// because a genesis is never replaced. Between the first node's start and the record only that node has the file.
    function genesisOf(address app)
        external
        view
        returns (bytes32 fingerprint, bytes32 evidence, uint64 recordedIn, uint48 recordedAt);

    /// @notice `data` decoded and encoded again; fails where it cannot be decoded.
    /// @dev Equal to `data` if and only if that is in the one form in which it can be proposed.
    function encodingOf(Kind kind, bytes calldata data) external pure returns (bytes memory);

    /// @notice Whether any proposal about this contract was ever executed, or rolled back.
    /// @dev Before, it may allow what nobody announced here: what it was made with, or what an earlier owner allowed.
    /// By then all of that was to be seen for as long as the proposal had waited.
    function isAnnounced(address target) external view returns (bool);

    /// @notice Whether a workload may have keys now, as far as this operator governs it, and if not, why.
    /// @dev For the replicator. Device and TCB status are not asked here; `KmsAuth.isAppAllowed` asks them.
    /// @dev Gates, in this order: KmsAuth and app are this operator's, the app is registered, not frozen, the OS image,
    /// the configuration, the registers if any are given, both announced. A contract that fails or burns gas is a no.
    function isAllowed(Workload calldata workload) external view returns (bool allowed, string memory reason);

    /// @notice The same at the time `at`, now or later, if nothing is granted or denied until then.
    function isAllowedAt(Workload calldata workload, uint256 at)
        external
        view
        returns (bool allowed, string memory reason);

    /// @notice The same as `isAllowedAt`, but fails where a contract that is asked fails.
    function askWhetherAllowed(Workload calldata workload, uint256 at)
        external
        view
        returns (bool allowed, string memory reason);
}
