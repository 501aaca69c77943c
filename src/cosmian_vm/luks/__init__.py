"""Encrypted containers (LUKS2) that the TPM of this machine opens, and only as long as it boots the same system.

``container`` is what there is to call, ``first`` the step of the agent's first launch. ``header`` (LUKS2) and
``record`` (in the TPM) are pure parsers; ``trust`` decides whether a header is ours; ``nv_index`` speaks to the TPM.
"""
