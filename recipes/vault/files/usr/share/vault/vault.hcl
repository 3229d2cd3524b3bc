# One server for this machine alone, sealed until `vault operator init` and `vault operator unseal`. For a cluster
# write addresses and certificates here: https://developer.hashicorp.com/vault/docs/configuration
ui            = true
disable_mlock = true # as integrated storage wants it; keep swap off or encrypted
api_addr      = "http://127.0.0.1:8200"
cluster_addr  = "https://127.0.0.1:8201"

storage "raft" {
  path    = "/var/lib/vault"
  node_id = "node1"
}

listener "tcp" {
  address     = "127.0.0.1:8200"
  tls_disable = true # nothing leaves the machine; give tls_cert_file and tls_key_file with any other address
}
