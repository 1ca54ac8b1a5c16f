// Package pki is the identity of machines: who may be part of a cluster, how they prove it, and how that ends.
//
// An Authority holds the cluster's roots and signs with the newest that counts. A Registrar is the servers' desk: it makes
// join tokens, admits machines that show one, hears how the machines stand (CheckIn), gives them new certificates, and
// revokes. What it knows is in state: model.Cluster, model.Machine, model.JoinToken and model.Revocation.
//
// A Machine is one machine's identity on its own disk. It gives the TLS configurations by which machines recognise each
// other, and renews itself through a Door: the servers' HTTP address for agents, Self for servers.
//
// Two loops keep it going. A Keeper runs on every server and brings what state says to its disk and its connections. A
// Warden runs with the leader: it takes the rotation of the authority from phase to phase, and forgets what is over.
//
// Read next: machine.go for the machine's side, registrar.go for the servers', rotation.go for why a rotation cuts nobody
// off. Decisions are in docs/adr/0008-trust-between-machines.md.
package pki
