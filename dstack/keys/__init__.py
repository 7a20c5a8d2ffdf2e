"""What is derived from what, who vouches for it, and how it is sealed. Pure: keys in, keys and signatures out.

The tree: two root keys; from them the keys of an app (disk, environment, k256, certificate authority); from the k256
key one purpose key for each path. The root signs the app key, the app key signs the purpose key.
"""

from dstack.keys.derivation import (
    AppKeys,
    RootKeys,
    app_keys_from_seed,
    derive_app_ca,
    derive_app_keys,
    derive_env_key,
    derive_purpose_key,
    env_public_key,
)
from dstack.keys.scalars import k256_public_key, p256_from_scalar
from dstack.keys.sealing import decrypt_env, encrypt_env, open_sealed, seal
from dstack.keys.signature_chain import (
    recover,
    sign_env_public_key,
    sign_purpose_key,
    verify_app_key,
    verify_env_public_key,
    verify_signature_chain,
)

__all__ = [
    "AppKeys",
    "RootKeys",
    "app_keys_from_seed",
    "decrypt_env",
    "derive_app_ca",
    "derive_app_keys",
    "derive_env_key",
    "derive_purpose_key",
    "encrypt_env",
    "env_public_key",
    "k256_public_key",
    "open_sealed",
    "p256_from_scalar",
    "recover",
    "seal",
    "sign_env_public_key",
    "sign_purpose_key",
    "verify_app_key",
    "verify_env_public_key",
    "verify_signature_chain",
]
