"""Who vouches: the certificates, CRLs and collateral of the hardware's makers, and their pinned roots."""
