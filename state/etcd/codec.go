package etcd

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

// Keys are root, kind, '/', id.
const (
	root      = "/gantry/v1/"
	leaderKey = root + "leader"
	headKey   = root + "head" // written by every transaction
	turnKey   = root + "turn" // of the member that does what one may do at a time
)

// Formats: the first byte of every value.
const (
	formatJSON     = 1 // the model's own JSON
	formatInstance = 2 // see instance.go
)

func encodeKey(k state.Key) string { return string(appendKey(nil, k)) }

func appendKey(b []byte, k state.Key) []byte {
	return append(append(append(append(b, root...), k.Kind.String()...), '/'), k.ID...)
}

// isRecord reports whether a key below root is that of a record.
func isRecord(key []byte) bool {
	return string(key) != leaderKey && string(key) != headKey && string(key) != turnKey && !isRelease(key)
}

func decodeKey(key string) (state.Key, error) {
	rest, ok := strings.CutPrefix(key, root)
	name, id, sep := strings.Cut(rest, "/")
	kind, known := state.ParseKind(name)
	if !ok || !sep || !known || id == "" {
		return state.Key{}, fmt.Errorf("key %q is none of Gantry's", key)
	}
	return state.Key{Kind: kind, ID: id}, nil
}

// encode appends the stored form of a record to b.
func encode(b []byte, val any) ([]byte, error) {
	if i, ok := val.(*model.Instance); ok {
		return appendInstance(append(b, formatInstance), i), nil
	}
	out := bytes.NewBuffer(append(b, formatJSON))
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(val); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(out.Bytes(), []byte("\n")), nil
}

// decode reads the record under key. It refuses what no encode wrote: values of another kind or id, unknown fields,
// and anything left over.
func decode(key state.Key, b []byte) (any, error) {
	val, err := decodeValue(key, b)
	if err != nil {
		return nil, fmt.Errorf("record %q cannot be read: %w", encodeKey(key), err)
	}
	if own, _ := state.KeyOf(val); own != key {
		return nil, fmt.Errorf("record %q cannot be read: it holds %s %q", encodeKey(key), own.Kind, own.ID)
	}
	return val, nil
}

func decodeValue(key state.Key, b []byte) (any, error) {
	if len(b) == 0 {
		return nil, errors.New("it is empty")
	}
	format, b := b[0], b[1:]
	switch {
	case key.Kind == state.KindInstance && format == formatInstance:
		return decodeInstance(model.InstanceID(key.ID), b)
	case key.Kind == state.KindApp && format == formatJSON:
		return decodeJSON[model.App](b)
	case key.Kind == state.KindVersion && format == formatJSON:
		v, err := decodeJSON[model.AppVersion](b)
		if err == nil && v.Spec == nil {
			err = errors.New("it has no spec")
		}
		return v, err
	case key.Kind == state.KindDeployment && format == formatJSON:
		return decodeJSON[model.Deployment](b)
	case key.Kind == state.KindNode && format == formatJSON:
		return decodeJSON[model.Node](b)
	case key.Kind == state.KindSettings && format == formatJSON:
		return decodeJSON[model.NodeSettings](b)
	case key.Kind == state.KindRole && format == formatJSON:
		return decodeJSON[model.Role](b)
	case key.Kind == state.KindPool && format == formatJSON:
		return decodeJSON[model.Pool](b)
	case key.Kind == state.KindReservation && format == formatJSON:
		return decodeJSON[model.Reservation](b)
	case key.Kind == state.KindVolume && format == formatJSON:
		return decodeJSON[model.PersistentVolume](b)
	case key.Kind == state.KindLosses && format == formatJSON:
		return decodeJSON[model.Losses](b)
	case key.Kind == state.KindCluster && format == formatJSON:
		return decodeJSON[model.Cluster](b)
	case key.Kind == state.KindMachine && format == formatJSON:
		return decodeJSON[model.Machine](b)
	case key.Kind == state.KindToken && format == formatJSON:
		return decodeJSON[model.JoinToken](b)
	case key.Kind == state.KindRevocation && format == formatJSON:
		return decodeJSON[model.Revocation](b)
	}
	return nil, fmt.Errorf("format %d is not known; a newer Gantry may have written it", format)
}

func decodeJSON[T any](b []byte) (*T, error) {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	var v *T
	if err := dec.Decode(&v); err != nil {
		return nil, err
	}
	if v == nil {
		return nil, errors.New("it is null")
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows its end")
	}
	return v, nil
}
