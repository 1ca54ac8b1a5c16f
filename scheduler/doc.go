// Package scheduler decides where instances run, or says in one sentence why they cannot.
//
// The engine (scheduler/engine) is a picture of every node's free resources, and finds places in it; policies
// (scheduler/policy) say which of the nodes that fit is best. Loop keeps the picture true: it is built from a view once
// and follows changes from then on, so that placing costs the same however much is placed already.
//
// Loop takes all pending instances as one round. Places are written in large transactions, each of which checks anew that
// the instance still waits and its node is still ready; while one is written, the next is computed. An instance holds its
// place until it is over, not just until it is told to end.
// When nobody knows whether a transaction will be written, the loop makes sure of that first, and builds its picture anew.
//
// What does not fit keeps waiting and is tried again when something becomes free or a node changes, not before. What is
// more important than what runs may get its place (evict.go). Nodes that are to be emptied are, and pools that want it
// are defragmented (drain.go). The loop also answers questions: would it fit, and why not (ask.go).
package scheduler
