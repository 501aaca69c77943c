"""The program cosmian_certtool: certificates by ACME, RA-TLS certificates, keys derived from the TEE."""
