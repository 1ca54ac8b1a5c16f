package model

import (
	"fmt"
	"path"
	"strings"
)

// AppID names an app by its absolute path in the tree of groups, such as "/shop/web".
type AppID string

// InstanceID names one instance of an app: the app's last path segment and a random suffix, such as "web-k3v9q2xw".
// It is unique in the cluster, never used again, and safe as a file, host and cgroup name.
type InstanceID string

// DeploymentID names one deployment.
type DeploymentID string

// NodeID names a node for as long as its data directory lives.
type NodeID string

// Limits on what users name.
const (
	MaxSegment   = 63  // bytes in one segment of an app id
	MaxAppID     = 200 // bytes in an app id
	MaxInstances = 1_000_000
)

// Kinds of names in DNS beside those of apps. They stand where the first group of an app would, so no app is in a group of
// these names.
const (
	NamesAll      = "all"      // instances of an app, whether they serve or not
	NamesSlot     = "slot"     // the instance that has a slot
	NamesInstance = "instance" // one instance
	NamesVirtual  = "l4"       // virtual addresses
)

// NamesKept reports whether a name is one in DNS that no app may have as its first.
func NamesKept(segment string) bool {
	switch segment {
	case NamesAll, NamesSlot, NamesInstance, NamesVirtual:
		return true
	}
	return false
}

// ParseAppID cleans and checks an app id: "shop/web" and "/shop/web/" both mean "/shop/web".
func ParseAppID(s string) (AppID, error) {
	if s == "" {
		return "", fmt.Errorf("app id is empty: write a path such as /shop/web")
	}
	clean := path.Clean("/" + s)
	if len(clean) > MaxAppID {
		return "", fmt.Errorf("app id has %d bytes, at most %d are allowed", len(clean), MaxAppID)
	}
	for seg := range strings.SplitSeq(clean[1:], "/") {
		if err := checkName(seg); err != nil {
			return "", fmt.Errorf("app id %q: %w", s, err)
		}
	}
	return AppID(clean), nil
}

// Name returns the last segment of the path.
func (a AppID) Name() string { return path.Base(string(a)) }

// Group returns the path above the last segment, "/" at the top.
func (a AppID) Group() string { return path.Dir(string(a)) }

// checkName holds names to what DNS labels allow (RFC 1123), since apps, containers and endpoints become host names.
func checkName(s string) error {
	switch {
	case s == "":
		return fmt.Errorf("a name is empty")
	case len(s) > MaxSegment:
		return fmt.Errorf("name %q has %d characters, at most %d are allowed", s, len(s), MaxSegment)
	case s[0] == '-' || s[len(s)-1] == '-':
		return fmt.Errorf("name %q begins or ends with '-'", s)
	}
	for _, r := range s {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' {
			return fmt.Errorf("name %q has %q: lower-case letters, digits and '-' are allowed", s, r)
		}
	}
	return nil
}
