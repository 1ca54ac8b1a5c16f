// Package scheduler decides where instances run, or says in one sentence why they cannot.
//
// The ledger is a picture of every node's free resources, in columns. It is built from a view once and follows changes
// from then on, so that placing costs the same however much is placed already. Instances of one version of an app are
// alike: they form a class, and whatever is asked of a node is asked once for the class.
//
// Loop takes all pending instances as one batch. Classes with fixed ports go first, then large ones; each fills the node
// that it leaves the least room on (best fit) before the next. Placements are written in large transactions, each of
// which checks anew that the instance still waits and its node is still ready. An instance holds its place until it is
// over, not just until it is told to end.
//
// What does not fit keeps waiting and is tried again when something becomes free or a node changes, not before.
package scheduler
