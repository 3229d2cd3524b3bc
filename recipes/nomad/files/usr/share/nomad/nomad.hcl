# One machine that is server and client. For a cluster say which of the two it is, and where the servers are:
# https://developer.hashicorp.com/nomad/docs/configuration
data_dir = "/var/lib/nomad"

server {
  enabled          = true
  bootstrap_expect = 1
}

client {
  enabled = true
}
