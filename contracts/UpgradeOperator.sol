// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

import {Ownable, Ownable2Step} from "@openzeppelin/contracts/access/Ownable2Step.sol";
import {UUPSUpgradeable} from "@openzeppelin/contracts/proxy/utils/UUPSUpgradeable.sol";
import {Address} from "@openzeppelin/contracts/utils/Address.sol";
import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {Strings} from "@openzeppelin/contracts/utils/Strings.sol";
import {Actions} from "./Actions.sol";
import {IAppAuthPolicy} from "./interfaces/IAppAuth.sol";
import {IGoverned} from "./interfaces/IGoverned.sol";
import {IKmsAuth} from "./interfaces/IKmsAuth.sol";
import {IUpgradeOperator} from "./interfaces/IUpgradeOperator.sol";

/// @title The only owner of KmsAuth and of governed apps; the words are in IUpgradeOperator.
contract UpgradeOperator is IUpgradeOperator, Ownable {
    using Actions for Action;

    /// @dev What was done about a contract: whether its grants were announced here, and when anything was last denied.
    struct Known {
        bool isAnnounced;
        uint48 deniedAt;
    }

    /// @inheritdoc IUpgradeOperator
    uint256 public constant MIN_DELAY = 48 hours;
    /// @notice The longest delay there can be.
    uint256 public constant MAX_DELAY = 365 days;
    /// @notice How long a Ready proposal can be executed, then rolled back, and a nomination be accepted.
    uint256 public constant WINDOW = 14 days;
    /// @notice How long a freeze lasts.
    uint256 public constant FREEZE = 7 days;
    /// @notice How long after the end of a freeze the app cannot be denied again.
    uint256 public constant COOL_DOWN = 7 days;
    /// @notice How long at least a proposal of kind `ForcedGuardian` waits.
    uint256 public constant FORCED_DELAY = 7 days;
    /// @notice How many actions a proposal, its rollback or a denial may hold.
    uint256 public constant MAX_ACTIONS = 16;
    /// @notice How long a content's address may be.
    uint256 public constant MAX_URI_BYTES = 512;
    /// @notice How many ids `proposalIds` gives at once.
    uint256 public constant MAX_PAGE = 100;

    /// @dev The code hash of an account that exists and has no code (EIP-1052); one that does not exist has zero.
    bytes32 private constant NO_CODE = keccak256("");

    /// @dev What all contracts that `isAllowed` asks may use together.
    uint256 private constant ASK_GAS = 2_000_000;

    /// @inheritdoc IUpgradeOperator
    Delays public delays;
    /// @inheritdoc IUpgradeOperator
    address public guardian;
    /// @inheritdoc IUpgradeOperator
    Nomination public nominatedOwner;
    /// @inheritdoc IUpgradeOperator
    Nomination public nominatedGuardian;
    /// @inheritdoc IUpgradeOperator
    mapping(bytes32 id => address) public rollbackAgreedBy;
    /// @inheritdoc IUpgradeOperator
    mapping(address app => Genesis) public genesisOf;
    mapping(address target => Known) private _known;
    bytes32[] private _ids;
    mapping(bytes32 id => Proposal) private _proposals;
    mapping(bytes32 subjectHash => uint256 time) private _deniedAt;
    uint256 private transient _running;

    /// @param owner_ Who may propose, cancel and deny; not zero.
    /// @param guardian_ Who else may cancel and deny; not zero, the owner itself where there is nobody else.
    /// @param delays_ Seconds between proposal and earliest execution, from 48 hours to 365 days, of upgrades longest.
    constructor(address owner_, address guardian_, Delays memory delays_) Ownable(owner_) {
        require(guardian_ != address(0), GuardianMissing());
        _setGuardian(guardian_);
        _setDelay(DelayClass.Upgrades, delays_.upgrades);
        _setDelay(DelayClass.Roles, delays_.roles);
        _setDelay(DelayClass.Policy, delays_.policy);
    }

    modifier onlyOwnerOrGuardian() {
        require(msg.sender == owner() || msg.sender == guardian, NeitherOwnerNorGuardian(msg.sender));
        _;
    }

    /// @dev Keeps contracts that are called from calling what calls contracts. All state is final before, too.
    modifier alone() {
        require(_running == 0, Reentered());
        _running = 1;
        _;
        _running = 0;
    }

    /// @inheritdoc IUpgradeOperator
    function propose(Content calldata content) external onlyOwner returns (bytes32 id) {
        require(content.actions.length > 0, ActionCountOutOfRange(0, MAX_ACTIONS));
        require(bytes(content.uri).length <= MAX_URI_BYTES, UriTooLong(bytes(content.uri).length, MAX_URI_BYTES));
        uint256 wait = Math.max(_checkGrants(content.actions), _checkGrants(content.rollback));
        bool forced = _isForced(content);
        _checkCode(content);

        uint256 nonce = _ids.length;
        uint256 readyAt = block.timestamp + wait;
        id = proposalId(nonce, content);
        _ids.push(id);
        _proposals[id] = Proposal(uint64(nonce), uint48(block.timestamp), uint48(readyAt), 0, false, false, forced);

        emit ProposalQueued(id, msg.sender, nonce, readyAt, readyAt + WINDOW, content);
    }

    /// @inheritdoc IUpgradeOperator
    function adopt(address target) external onlyOwner alone {
        emit ContractAdopted(target);
        Ownable2Step(target).acceptOwnership();
        require(_owns(target), NotHandedOver(target));
    }

    /// @inheritdoc IUpgradeOperator
    function cancel(bytes32 id) external onlyOwnerOrGuardian {
        State state = stateOf(id);
        require(state == State.Waiting || state == State.Ready, NotPending(id, state));
        Proposal storage record = _proposals[id];
        require(!record.forced || msg.sender == owner(), NotForGuardian(Kind.ForcedGuardian));

        record.cancelled = true;

        emit ProposalCancelled(id, msg.sender);
    }

    /// @inheritdoc IUpgradeOperator
    function deny(Action[] calldata actions) external onlyOwnerOrGuardian alone {
        require(actions.length > 0, ActionCountOutOfRange(0, MAX_ACTIONS));
        _checkTargets(actions);
        for (uint256 i = 0; i < actions.length; i++) {
            actions[i].checkDenial();
            (, bytes32 subject) = actions[i].subjectOf();
            _recordDenial(actions[i].kind, subject, actions[i], msg.sender);
            _deny(actions[i]);
        }
    }

    /// @inheritdoc IUpgradeOperator
    function agreeToRollback(bytes32 id) external onlyOwnerOrGuardian {
        _checkRollbackOpen(id);

        rollbackAgreedBy[id] = msg.sender;

        emit RollbackAgreed(id, msg.sender);
    }

    /// @inheritdoc IUpgradeOperator
    function rollBack(bytes32 id, Content calldata content) external onlyOwnerOrGuardian alone {
        Proposal storage record = _checkRollbackOpen(id);
        _checkContent(id, record.nonce, content);
        require(content.rollback.length > 0, NoRollback(id));
        address other = rollbackAgreedBy[id];
        require(
            (msg.sender == owner() && other == guardian) || (msg.sender == guardian && other == owner()),
            RollbackNotAgreed(id)
        );

        record.rolledBack = true;

        emit ProposalRolledBack(id, msg.sender);

        _apply(content.rollback, record.proposedAt);
    }

    /// @notice Always refuses.
    function renounceOwnership() public pure override {
        revert RenounceRefused();
    }

    /// @notice Always refuses.
    function transferOwnership(address) public pure override {
        revert OnlyByProposal();
    }

    /// @inheritdoc IUpgradeOperator
    function execute(bytes32 id, Content calldata content) external alone {
        Proposal memory record = _proposals[id];
        State state = _stateOf(record);
        require(state == State.Ready, UnexpectedState(id, state, State.Ready));
        _checkContent(id, record.nonce, content);

        _proposals[id].executedAt = uint48(block.timestamp);

        emit ProposalExecuted(id, msg.sender);

        _apply(content.actions, record.proposedAt);
    }

    /// @inheritdoc IUpgradeOperator
    function anchorReceipt(address app, bytes32 digest) external {
        emit ReceiptAnchored(msg.sender, app, digest);
    }

    /// @inheritdoc IUpgradeOperator
    function acceptOwnership() external {
        _checkNominated(nominatedOwner);

        delete nominatedOwner;
        _transferOwnership(msg.sender);
    }

    /// @inheritdoc IUpgradeOperator
    function acceptGuardian() external {
        _checkNominated(nominatedGuardian);

        delete nominatedGuardian;
        _setGuardian(msg.sender);
    }

    /// @inheritdoc IUpgradeOperator
    function stateOf(bytes32 id) public view returns (State) {
        return _stateOf(_proposals[id]);
    }

    /// @inheritdoc IUpgradeOperator
    function delayOf(Action calldata action) external view returns (uint256) {
        action.checkGrant();
        return _delay(action);
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
        return _deniedAt[_subjectHash(action)];
    }

    /// @inheritdoc IUpgradeOperator
    function isAnnounced(address target) public view returns (bool) {
        return _known[target].isAnnounced;
    }

    /// @inheritdoc IUpgradeOperator
    function proposalId(uint256 nonce, Content calldata content) public view returns (bytes32) {
        return keccak256(abi.encode(block.chainid, address(this), nonce, content));
    }

    /// @inheritdoc IUpgradeOperator
    function codeHashesOf(Action[] calldata actions, Action[] calldata rollback)
        external
        view
        returns (bytes32[] memory codeHashes)
    {
        codeHashes = new bytes32[](2 * (actions.length + rollback.length));
        for (uint256 i = 0; i < codeHashes.length; i++) {
            codeHashes[i] = _codeHash(_accountAt(actions, rollback, i));
        }
    }

    /// @inheritdoc IUpgradeOperator
    function encodingOf(Kind kind, bytes calldata data) external pure returns (bytes memory) {
        if (kind == Kind.Version) return abi.encode(abi.decode(data, (IAppAuthPolicy.Version)));
        if (kind == Kind.KmsInfo) return abi.encode(abi.decode(data, (IKmsAuth.KmsInfo)));
        return data;
    }

    /// @inheritdoc IUpgradeOperator
    function isAllowed(Workload calldata workload) external view returns (bool allowed, string memory reason) {
        return isAllowedAt(workload, block.timestamp);
    }

    /// @inheritdoc IUpgradeOperator
    /// @dev Asks by a call of its own, so that whatever goes wrong in there stays in there.
    function isAllowedAt(Workload calldata workload, uint256 at)
        public
        view
        returns (bool allowed, string memory reason)
    {
        require(at >= block.timestamp, TimePassed(at, block.timestamp));
        try this.askWhetherAllowed{gas: ASK_GAS}(workload, at) returns (bool allowed_, string memory reason_) {
            return (allowed_, reason_);
        } catch {
            return (false, "A contract did not answer");
        }
    }

    /// @inheritdoc IUpgradeOperator
    function askWhetherAllowed(Workload calldata workload, uint256 at)
        external
        view
        returns (bool allowed, string memory reason)
    {
        (IKmsAuth kmsAuth, IAppAuthPolicy app) = (IKmsAuth(workload.kmsAuth), IAppAuthPolicy(workload.app));
        bytes32 composeHash = workload.composeHash;
        bytes32 osImageHash = workload.osImageHash;
        if (!_owns(address(kmsAuth)) || !_owns(address(app))) return (false, "Not governed by this operator");
        if (!kmsAuth.registeredApps(address(app))) return (false, "App not registered");
        if (at < kmsAuth.frozenUntil(address(app))) return (false, "App is frozen");
        if (!kmsAuth.allowedOsImages(osImageHash)) return (false, "OS image is not allowed");
        if (!app.isConfigurationAllowed(composeHash, osImageHash, at)) return (false, "Compose hash not allowed");
        if (_anyGiven(workload.registers) && !app.areRegistersAllowed(composeHash, workload.registers, at)) {
            return (false, "Registers not allowed");
        }
        if (!isAnnounced(address(kmsAuth)) || !isAnnounced(address(app))) return (false, "Not announced");
        return (true, "");
    }

    /// @dev Puts actions in force. Their targets are looked at before the first and again after the last of them, so that
    /// none can make another one possible, or take a target out of this operator's hands.
    function _apply(Action[] calldata actions, uint256 proposedAt) private {
        _checkOwned(actions);
        for (uint256 i = 0; i < actions.length; i++) {
            Action calldata action = actions[i];
            Known memory known = _known[action.target];
            if (known.deniedAt >= proposedAt) _checkNotDenied(action, proposedAt);
            if (!known.isAnnounced) _known[action.target].isAnnounced = true;
            _grant(action, proposedAt);
        }
        _checkOwned(actions);
    }

    function _grant(Action calldata action, uint256 proposedAt) private {
        if (action.kind == Kind.Version) return _pass(action, IAppAuthPolicy.addVersion.selector);
        (Kind kind, address target, bytes32 value) = (action.kind, action.target, bytes32(action.data));
        if (kind == Kind.ComposeHash) IAppAuthPolicy(target).addComposeHash(value);
        else if (kind == Kind.Sunset) _postponeSunset(action, proposedAt);
        else if (kind == Kind.Device) IAppAuthPolicy(target).addDevice(value);
        else if (kind == Kind.AnyDevice) IAppAuthPolicy(target).setAllowAnyDevice(true);
        else if (kind == Kind.OutdatedTcb) IAppAuthPolicy(target).tolerateOutdatedTcb(_time(value));
        else if (kind == Kind.FreezeForGood) IAppAuthPolicy(target).freezeForGood();
        else if (kind == Kind.OsImage) IKmsAuth(target).addOsImageHash(value);
        else if (kind == Kind.KmsAggregatedMr) IKmsAuth(target).addKmsAggregatedMr(value);
        else if (kind == Kind.KmsDevice) IKmsAuth(target).addKmsDevice(value);
        else if (kind == Kind.GatewayAppId) IKmsAuth(target).setGatewayAppId(Strings.toHexString(action.accountOf()));
        else if (kind == Kind.AppImplementation) IKmsAuth(target).setAppImplementation(action.accountOf());
        else if (kind == Kind.App) IKmsAuth(target).unfreezeApp(action.accountOf());
        else if (kind == Kind.FreezeRenewal) _renewFreeze(action);
        else if (kind == Kind.ImplementationUpgrade) UUPSUpgradeable(target).upgradeToAndCall(action.accountOf(), "");
        else if (kind == Kind.Delay) _changeDelay(action, proposedAt);
        else if (kind == Kind.Owner) _nominate(nominatedOwner, action);
        else if (kind == Kind.Guardian || kind == Kind.ForcedGuardian) _nominate(nominatedGuardian, action);
        else if (kind == Kind.KmsInfo) _pass(action, IKmsAuth.setKmsInfo.selector);
        else if (kind == Kind.KeyEpoch) IKmsAuth(target).rotateKeys(_time(value), _second(action));
        else if (kind == Kind.Genesis) _recordGenesis(target, value, bytes32(action.data[32:]));
        else revert NotGrantable(kind);
    }

    function _deny(Action calldata action) private {
        (Kind kind, address target, bytes32 value) = (action.kind, action.target, bytes32(action.data));
        if (kind == Kind.ComposeHash) IAppAuthPolicy(target).removeComposeHash(value);
        else if (kind == Kind.Sunset) IAppAuthPolicy(target).shortenSunset(_time(value), _second(action));
        else if (kind == Kind.Device) IAppAuthPolicy(target).removeDevice(value);
        else if (kind == Kind.AnyDevice) IAppAuthPolicy(target).setAllowAnyDevice(false);
        else if (kind == Kind.OutdatedTcb) IAppAuthPolicy(target).setRequireTcbUpToDate(true);
        else if (kind == Kind.OsImage) IKmsAuth(target).removeOsImageHash(value);
        else if (kind == Kind.KmsAggregatedMr) IKmsAuth(target).removeKmsAggregatedMr(value);
        else if (kind == Kind.KmsDevice) IKmsAuth(target).removeKmsDevice(value);
        else if (kind == Kind.App) _freeze(action);
        else if (kind == Kind.ContractUpgrades) _disableUpgrades(target);
        else revert NotDeniable(kind);
    }

    /// @dev A call like the others: the data is the encoding of the one argument, as `propose` has checked.
    function _pass(Action calldata action, bytes4 selector) private {
        (bool done, bytes memory said) = action.target.call(bytes.concat(selector, action.data));
        Address.verifyCallResult(done, said);
    }

    /// @dev An end that was set since the proposal is a denial of it, whoever set it.
    function _postponeSunset(Action calldata action, uint256 proposedAt) private {
        (IAppAuthPolicy app, uint64 number) = (IAppAuthPolicy(action.target), _time(bytes32(action.data)));
        uint256 endSetAt = app.endSetAt(number);
        require(endSetAt < proposedAt, DeniedSince(action.kind, action.target, bytes32(action.data), endSetAt));
        app.postponeSunset(number, _second(action));
    }

    function _changeDelay(Action calldata action, uint256 proposedAt) private {
        (DelayClass class, uint256 delay) = (action.classOf(), _second(action));
        uint256 from = delay < _delay(class) ? proposedAt + _delay(class) : 0;
        require(block.timestamp >= from, LoweredTooSoon(class, from));
        _setDelay(class, delay);
    }

    function _recordGenesis(address app, bytes32 fingerprint, bytes32 evidence) private {
        bytes32 recorded = genesisOf[app].fingerprint;
        require(recorded == 0, GenesisRecordedAlready(app, recorded));
        genesisOf[app] = Genesis(fingerprint, evidence, uint64(block.number), uint48(block.timestamp));
        emit GenesisRecorded(app, fingerprint, evidence);
    }

    function _disableUpgrades(address target) private {
        require(msg.sender == owner(), NotForGuardian(Kind.ContractUpgrades));
        IGoverned(target).disableUpgrades();
    }

    function _freeze(Action calldata action) private {
        uint256 last = IKmsAuth(action.target).frozenUntil(action.accountOf());
        uint256 from = last == 0 ? 0 : last + COOL_DOWN;
        require(block.timestamp >= from, FreezeTooSoon(action.accountOf(), from));
        IKmsAuth(action.target).freezeApp(action.accountOf(), uint64(block.timestamp + FREEZE));
    }

    /// @dev A denial, although a proposal makes it: the end of a freeze that was proposed before is stopped.
    function _renewFreeze(Action calldata action) private {
        _recordDenial(Kind.App, bytes32(action.data), action, address(this));
        IKmsAuth(action.target).freezeApp(action.accountOf(), uint64(block.timestamp + FREEZE));
    }

    function _nominate(Nomination storage nomination, Action calldata action) private {
        uint48 expiresAt = uint48(block.timestamp + WINDOW);
        (nomination.account, nomination.expiresAt) = (action.accountOf(), expiresAt);
        emit Nominated(action.kind, action.accountOf(), expiresAt);
    }

    function _setGuardian(address guardian_) private {
        emit GuardianChanged(guardian, guardian_);
        guardian = guardian_;
    }

    function _setDelay(DelayClass class, uint256 delay) private {
        require(delay >= MIN_DELAY && delay <= MAX_DELAY, DelayOutOfRange(delay, MIN_DELAY, MAX_DELAY));
        emit DelayChanged(class, _delay(class), delay);
        if (class == DelayClass.Policy) delays.policy = uint48(delay);
        else if (class == DelayClass.Roles) delays.roles = uint48(delay);
        else delays.upgrades = uint48(delay);
        require(
            delays.upgrades >= Math.max(delays.policy, delays.roles),
            UpgradesNotLongest(delays.policy, delays.roles, delays.upgrades)
        );
    }

    function _recordDenial(Kind kind, bytes32 subject, Action calldata action, address by) private {
        _deniedAt[_hash(kind, action.target, subject)] = block.timestamp;
        _known[action.target].deniedAt = uint48(block.timestamp);
        emit ActionDenied(by, action.target, subject, kind, action.data);
    }

    /// @dev The longest delay of the actions; fails unless all can be proposed.
    function _checkGrants(Action[] calldata actions) private view returns (uint256 wait) {
        _checkTargets(actions);
        for (uint256 i = 0; i < actions.length; i++) {
            actions[i].checkGrant();
            wait = Math.max(wait, _delay(actions[i]));
        }
    }

    /// @dev Whether the guardian is overruled; fails if anything comes with that, for it could not be cancelled either.
    function _isForced(Content calldata content) private pure returns (bool forced) {
        forced = _anyForced(content.actions) || _anyForced(content.rollback);
        require(!forced || content.actions.length + content.rollback.length == 1, NotAlone(Kind.ForcedGuardian));
    }

    function _anyForced(Action[] calldata actions) private pure returns (bool found) {
        for (uint256 i = 0; i < actions.length; i++) {
            found = found || actions[i].kind == Kind.ForcedGuardian;
        }
    }

    /// @dev For what nobody has looked at yet: accounts without code cannot even be asked for their owner.
    function _checkTargets(Action[] calldata actions) private view {
        require(actions.length <= MAX_ACTIONS, ActionCountOutOfRange(actions.length, MAX_ACTIONS));
        for (uint256 i = 0; i < actions.length; i++) {
            (Kind kind, address target) = (actions[i].kind, actions[i].target);
            require(target.code.length > 0, TargetNotGoverned(kind, target));
        }
        _checkOwned(actions);
    }

    function _checkOwned(Action[] calldata actions) private view {
        for (uint256 i = 0; i < actions.length; i++) {
            Action calldata action = actions[i];
            (Kind kind, address target) = (action.kind, action.target);
            address owned = Actions.isOwn(kind) ? target : Ownable(target).owner();
            require(owned == address(this), TargetNotGoverned(kind, target));
        }
    }

    function _stateOf(Proposal memory record) private view returns (State) {
        if (record.proposedAt == 0) return State.Unset;
        if (record.rolledBack) return State.RolledBack;
        if (record.executedAt != 0) return State.Executed;
        if (record.cancelled) return State.Cancelled;
        if (block.timestamp < record.readyAt) return State.Waiting;
        return block.timestamp < record.readyAt + WINDOW ? State.Ready : State.Expired;
    }

    /// @dev Fails unless the call holds exactly the encoding of what was proposed, and the code is the same.
    function _checkContent(bytes32 id, uint256 nonce, Content calldata content) private view {
        bytes32 got = _idInCall(nonce);
        require(got == id, ContentMismatch(id, got));
        _checkCode(content);
    }

    /// @dev The same as `proposalId`, whose encoding of the content stands in the call already: behind its place, which
    /// is behind the id. A place that is not the usual one makes another id, and so does any byte more.
    function _idInCall(uint256 nonce) private view returns (bytes32) {
        uint256 place = uint256(bytes32(msg.data[36:68])) + 64;
        uint256 operator = uint160(address(this));
        return keccak256(abi.encodePacked(block.chainid, operator, nonce, place, msg.data[68:]));
    }

    function _checkCode(Content calldata content) private view {
        (Action[] calldata actions, Action[] calldata rollback) = (content.actions, content.rollback);
        bytes32[] calldata codeHashes = content.codeHashes;
        uint256 want = 2 * (actions.length + rollback.length);
        require(codeHashes.length == want, CodeHashCount(codeHashes.length, want));
        _checkCode(actions, codeHashes, 0);
        _checkCode(rollback, codeHashes, 2 * actions.length);
    }

    function _checkCode(Action[] calldata actions, bytes32[] calldata codeHashes, uint256 position) private view {
        for (uint256 i = 0; i < actions.length; i++) {
            Action calldata action = actions[i];
            _checkCode(action.target, codeHashes[position++]);
            _checkCode(action.accountOf(), codeHashes[position++]);
        }
    }

    function _checkCode(address account, bytes32 want) private view {
        bytes32 got = _codeHash(account);
        require(got == want, CodeChanged(account, got, want));
    }

    function _checkNotDenied(Action calldata action, uint256 proposedAt) private view {
        (Kind kind, bytes32 subject) = action.subjectOf();
        uint256 time = _deniedAt[_hash(kind, action.target, subject)];
        require(time < proposedAt, DeniedSince(kind, action.target, subject, time));
    }

    function _checkNominated(Nomination storage nomination) private view {
        require(
            msg.sender == nomination.account && block.timestamp < nomination.expiresAt, NotNominated(msg.sender)
        );
    }

    function _checkRollbackOpen(bytes32 id) private view returns (Proposal storage record) {
        State state = stateOf(id);
        require(state == State.Executed, UnexpectedState(id, state, State.Executed));
        record = _proposals[id];
        uint256 closedAt = record.executedAt + WINDOW;
        require(block.timestamp < closedAt, RollbackClosed(id, closedAt));
    }

    function _delay(Action calldata action) private view returns (uint256) {
        uint256 delay = _delay(action.classOf());
        return action.kind == Kind.ForcedGuardian ? Math.max(delay, FORCED_DELAY) : delay;
    }

    function _delay(DelayClass class) private view returns (uint256) {
        if (class == DelayClass.Policy) return delays.policy;
        return class == DelayClass.Roles ? delays.roles : delays.upgrades;
    }

    function _owns(address target) private view returns (bool) {
        return target.code.length > 0 && Ownable(target).owner() == address(this);
    }

    function _codeHash(address account) private view returns (bytes32) {
        if (account == address(0)) return 0;
        bytes32 codeHash = account.codehash;
        return codeHash == NO_CODE ? bytes32(0) : codeHash;
    }

    /// @dev The account whose code the hash at `position` is of.
    function _accountAt(Action[] calldata actions, Action[] calldata rollback, uint256 position)
        private
        pure
        returns (address)
    {
        uint256 i = position / 2;
        Action calldata action = i < actions.length ? actions[i] : rollback[i - actions.length];
        return position % 2 == 0 ? action.target : action.accountOf();
    }

    function _subjectHash(Action calldata action) private pure returns (bytes32) {
        (Kind kind, bytes32 subject) = action.subjectOf();
        return _hash(kind, action.target, subject);
    }

    function _hash(Kind kind, address target, bytes32 subject) private pure returns (bytes32) {
        return keccak256(abi.encode(kind, target, subject));
    }

    function _second(Action calldata action) private pure returns (uint64) {
        return _time(bytes32(action.data[32:]));
    }

    function _time(bytes32 word) private pure returns (uint64) {
        return uint64(uint256(word));
    }

    function _anyGiven(IAppAuthPolicy.Registers calldata registers) private pure returns (bool) {
        return registers.mrtd.length + registers.rtmr0.length + registers.rtmr1.length + registers.rtmr2.length
            + registers.rtmr3.length > 0;
    }
}
