# A client agent that nobody outside this machine can reach, until this file, or another one beside it, says more:
# https://developer.hashicorp.com/consul/docs/agent/config
data_dir    = "/var/lib/consul"
bind_addr   = "127.0.0.1"
client_addr = "127.0.0.1"
