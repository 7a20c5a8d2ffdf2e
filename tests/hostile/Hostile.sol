// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

/// @title A governed contract, and an owner, that calls back whenever it is called.
contract CallingBack {
    address public owner;
    address public pendingOwner;
    bool public handsOver;

    address[] private _to;
    bytes[] private _data;

    uint256 public visits;
    bool[] private _done;
    bytes[] private _said;

    constructor(address owner_, bool handsOver_) {
        (owner, pendingOwner, handsOver) = (owner_, owner_, handsOver_);
    }

    /// @notice What it does when it is called; each time all of it.
    function prepare(address to, bytes calldata data) external {
        _to.push(to);
        _data.push(data);
    }

    function setOwner(address owner_) external {
        owner = owner_;
    }

    /// @notice As an owner or guardian: do something at once.
    function forward(address to, bytes calldata data) external returns (bytes memory answer) {
        bool done;
        (done, answer) = to.call(data);
        if (!done) {
            assembly ("memory-safe") {
                revert(add(answer, 0x20), mload(answer))
            }
        }
    }

    function outcome(uint256 i) external view returns (bool done, bytes memory said) {
        return (_done[i], _said[i]);
    }

    function acceptOwnership() external {
        _callBack();
        if (handsOver) owner = msg.sender;
    }

    function addComposeHash(bytes32) external {
        _callBack();
    }

    function removeComposeHash(bytes32) external {
        _callBack();
    }

    function _callBack() private {
        visits++;
        for (uint256 i = 0; i < _to.length; i++) {
            (bool done, bytes memory said) = _to[i].call(_data[i]);
            _done.push(done);
            _said.push(said);
        }
    }
}

/// @title Leaves its owner's hands while it is called.
contract Deserter {
    address public owner;

    constructor(address owner_) {
        owner = owner_;
    }

    function addComposeHash(bytes32) external {
        owner = address(0xdead);
    }
}

/// @title An app contract that allows everything for ever, and says whatever owner it was told to.
contract YesMan {
    address public owner;

    constructor(address owner_) {
        owner = owner_;
    }

    /// @dev 1, then the offset of an empty text: true to every question, in the form of each.
    fallback() external {
        assembly ("memory-safe") {
            mstore(0x00, 1)
            mstore(0x20, 0x40)
            mstore(0x40, 0)
            return(0, 0x60)
        }
    }
}

/// @title An app contract that the operator seems to own, and that misbehaves when it is asked anything else.
contract Misbehaving {
    address public owner;
    uint256 private immutable _way;

    constructor(address owner_, uint256 way) {
        owner = owner_;
        _way = way;
    }

    fallback() external {
        uint256 way = _way;
        assembly ("memory-safe") {
            switch way
            case 0 { revert(0, 0) }
            case 1 { for {} 1 {} {} }
            case 2 { return(0, 0) }
            case 3 { return(0, 1000000) }
            case 4 { revert(0, 1000000) }
            case 5 {
                mstore(0, 2)
                return(0, 32)
            }
            case 6 {
                mstore(0, not(0))
                return(0, 32)
            }
            default { invalid() }
        }
    }
}

/// @title Misbehaves even when asked for its owner.
contract Ownerless {
    uint256 private immutable _way;

    constructor(uint256 way) {
        _way = way;
    }

    fallback() external {
        uint256 way = _way;
        assembly ("memory-safe") {
            switch way
            case 0 { revert(0, 0) }
            case 1 { for {} 1 {} {} }
            case 2 { return(0, 0) }
            case 3 { return(0, 1000000) }
            default {
                mstore(0, not(0))
                return(0, 32)
            }
        }
    }
}

/// @title Puts code at an address that is known before.
contract Factory {
    event Made(address account);

    function make(bytes memory creation) external {
        address account;
        assembly ("memory-safe") {
            account := create2(0, add(creation, 0x20), mload(creation), 0)
        }
        emit Made(account);
    }
}

/// @title Emits whatever it is told to: the look of another contract's event.
contract Spammer {
    function spam(bytes32 kind, bytes32 id, bytes32 by, bytes calldata data, uint256 times) external {
        bytes memory copy = data;
        for (uint256 i = 0; i < times; i++) {
            assembly ("memory-safe") {
                log3(add(copy, 0x20), mload(copy), kind, id, by)
            }
        }
    }
}
