package model

import (
	"fmt"
	"strings"
	"time"
)

// MachineRole is what a machine is in a cluster: its certificate says so, and is good for nothing else.
type MachineRole string

// What a machine may be. A process that is both has two identities.
const (
	ServerMachine MachineRole = "server"
	AgentMachine  MachineRole = "agent"
)

// ParseMachineRole reads a MachineRole.
func ParseMachineRole(s string) (MachineRole, error) {
	switch r := MachineRole(s); r {
	case ServerMachine, AgentMachine:
		return r, nil
	}
	return "", fmt.Errorf("role %q is not known: write server or agent", s)
}

// MachineID names a machine by its role and its own id, such as agent/0b9d6b4e or server/a.
type MachineID string

// MachineOf returns the id of a machine. The name of an agent is its node's id.
func MachineOf(role MachineRole, name string) MachineID { return MachineID(string(role) + "/" + name) }

// Split returns what MachineOf was given.
func (id MachineID) Split() (MachineRole, string) {
	role, name, _ := strings.Cut(string(id), "/")
	return MachineRole(role), name
}

// MaxMachineName is how many bytes the name of a machine may have.
const MaxMachineName = 63

// CheckMachineName refuses names that a certificate, a file or a log line could take for something else.
func CheckMachineName(s string) error {
	if s == "" || len(s) > MaxMachineName {
		return fmt.Errorf("the name of a machine has %d bytes, from 1 to %d are allowed", len(s), MaxMachineName)
	}
	for i := range len(s) {
		c := s[i]
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || c != '-' && c != '.' && c != '_') {
			return fmt.Errorf("the name of a machine, %q, has %q: letters and digits, and after the first '-', '.' and '_', are allowed", s, c)
		}
	}
	return nil
}

// Cluster is what all machines of a cluster trust. There is one record. Identity writes it.
type Cluster struct {
	ID     string `json:"id"`     // immutable
	Roots  []Root `json:"roots"`  // trusted, oldest first; two while the authority is rotated
	Issuer string `json:"issuer"` // fingerprint of the root that signs new certificates
	// Trust counts the changes of Roots and Issuer. A machine never goes back to a lower one.
	Trust   uint64    `json:"trust"`
	Changed time.Time `json:"changed"` // when Trust last did
	// Joins counts the machines that joined. Every join writes it, so that none is admitted beside a change of trust
	// that it does not know.
	Joins uint64 `json:"joins,omitempty"`
	// Admin is what the administrator's token is made of once it was replaced; nil before.
	Admin *AdminSecret `json:"admin,omitempty"`

	Revision uint64 `json:"-"`
}

// AdminSecret is what the administrator's token is made of. It is replaced as a whole.
type AdminSecret struct {
	Number  uint64    `json:"number"`  // counts replacements, from 1; no server goes back to a lower one
	Sealed  []byte    `json:"sealed"`  // 32 bytes, sealed as the keys of roots are
	Changed time.Time `json:"changed"` // when it was made
}

// Count returns which replacement s is, 0 for none.
func (s *AdminSecret) Count() uint64 {
	if s == nil {
		return 0
	}
	return s.Number
}

// Root is one root certificate of a cluster.
type Root struct {
	Fingerprint string    `json:"fingerprint"`     // SHA-256 of its public key, as join tokens have it
	Cert        []byte    `json:"cert"`            // DER
	Cross       []byte    `json:"cross,omitempty"` // the same key, signed by the root before it; DER
	Key         []byte    `json:"key"`             // private key, sealed with a key that only the disks of servers hold
	Created     time.Time `json:"created"`
}

// Root returns the root with a fingerprint, nil for none.
func (c *Cluster) Root(fingerprint string) *Root {
	for i := range c.Roots {
		if c.Roots[i].Fingerprint == fingerprint {
			return &c.Roots[i]
		}
	}
	return nil
}

// Machine is a machine that joined a cluster, and what of its trust it is known to use. Identity writes it, on the
// machine's word.
type Machine struct {
	ID     MachineID `json:"id" doc:"Role and name, such as agent/0b9d6b4e."`
	Epoch  string    `json:"epoch" doc:"Which of its joins its certificates come from."`
	Joined time.Time `json:"joined" doc:"When it joined."`
	// Issuer and Trust are what the machine last said it uses, not what it was last sent.
	Issuer  string    `json:"issuer" doc:"Fingerprint of the root that signed the certificate it uses."`
	Trust   uint64    `json:"trust" doc:"Which change of the cluster's trust it knows."`
	Serial  string    `json:"serial" doc:"Serial number of the certificate that it was last issued, in hexadecimal."`
	Expires time.Time `json:"expires" doc:"When that certificate expires."`
	Addr    string    `json:"addr,omitempty" doc:"host:port of a server's API, where members of the store do not tell it."`
	// Token and Key tell a machine that asks again, since it did not hear that it was admitted, from another.
	Token string `json:"token,omitempty" doc:"Id of the token it joined with."`
	Key   string `json:"key,omitempty" doc:"Fingerprint of the public key it joined with."`

	Revision uint64 `json:"-"`
}

// Revocation refuses one machine, with all certificates of one of its joins. Identity writes it, and deletes an agent's when
// the last of them has expired.
type Revocation struct {
	ID    MachineID `json:"id" doc:"Role and name, such as agent/0b9d6b4e."`
	Epoch string    `json:"epoch" doc:"Which of its joins is refused."`
	At    time.Time `json:"at" doc:"When it was revoked."`
	Until time.Time `json:"until" doc:"When all its certificates have expired; zero for a server, which can make more."`
	Why   string    `json:"why,omitempty" doc:"Why, in the operator's words."`

	Revision uint64 `json:"-"`
}

// RevocationKey names the revocation of one join of a machine.
func RevocationKey(id MachineID, epoch string) string { return string(id) + "/" + epoch }

// JoinToken is what is kept of a secret that lets machines join. Identity writes it.
type JoinToken struct {
	ID      string      `json:"id" doc:"Id, which is part of the token's text."`
	Salt    []byte      `json:"salt"`
	Hash    []byte      `json:"hash"` // SHA-256 of salt and secret
	Role    MachineRole `json:"role" enum:"server,agent" doc:"What may join with it."`
	Created time.Time   `json:"created" doc:"When it was made."`
	Expires time.Time   `json:"expires" doc:"Until when it can be used."`
	Uses    int         `json:"uses,omitempty" doc:"How many machines may join with it, 0 for any number."`
	Used    int         `json:"used,omitempty" doc:"How many did."`
	By      string      `json:"by,omitempty" doc:"Who made it."`

	Revision uint64 `json:"-"`
}

// Spent reports whether as many machines joined with t as may.
func (t *JoinToken) Spent() bool { return t.Uses > 0 && t.Used >= t.Uses }
