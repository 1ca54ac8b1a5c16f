package daemon

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"

	"github.com/gantry-os/gantry/identity/pki"
	"github.com/gantry-os/gantry/state/etcd"
)

// RestoreServer makes the data directory of o, which holds the identity of a server and no store, the first server of the
// cluster as a backup has it. What ran goes on meanwhile, and agents find the server by its address.
func RestoreServer(o ServerOptions, backup io.Reader) (etcd.Backup, error) {
	if err := o.Validate(); err != nil {
		return etcd.Backup{}, err
	}
	lock, err := etcd.LockDir(o.DataDir)
	if err != nil {
		return etcd.Backup{}, err
	}
	defer lock.Close()
	identityDir := filepath.Join(o.DataDir, "identity")
	m, err := pki.OpenMachine(identityDir, pki.MachineOptions{Logger: o.Logger})
	if errors.Is(err, fs.ErrNotExist) {
		return etcd.Backup{}, fmt.Errorf("%s has no identity: copy the directory identity of one of the cluster's servers there, which agents know it by", o.DataDir)
	}
	if err != nil {
		return etcd.Backup{}, fmt.Errorf("open the server's identity: %w", err)
	}
	dir := filepath.Join(o.DataDir, "etcd")
	if exists(filepath.Join(dir, "member")) {
		return etcd.Backup{}, fmt.Errorf("%s holds a store: move it away first", dir)
	}
	own, roots := m.Files()
	peer := m.Peer()
	return etcd.Restore(dir, backup, etcd.NewCluster{Name: peer.Name, Peer: o.peer(own, roots, peer.Cluster)})
}

// peer is how other servers reach this one's member.
func (o *ServerOptions) peer(own, roots, cluster string) *etcd.Peer {
	return &etcd.Peer{
		Listen: beside(o.Listen, portPeers), Advertise: beside(o.Advertise, portPeers),
		TLS: etcd.TLS{Cert: own, Key: own, CA: roots, Name: pki.ServerName(cluster)},
	}
}
