// Package engine places instances on nodes: it keeps a picture of what every node has free, finds the node that is best
// for one more instance, or says why there is none. It is pure: it does no I/O and knows no clock, and the same calls give
// the same answers.
//
// # The picture
//
// Nodes are rows; what they have free stands in columns of integers. An instance that has a place is a hold, which is given
// back when the instance is over. Instances that ask for the same are of one Class: whatever is asked of a node is asked
// once for the class.
//
// # Finding a place
//
// Which of the nodes that fit is best is a policy's word: a cost, which depends on the node and on the class. For a class
// with many instances, or one that comes again, the engine keeps a field: the nodes that fit, in heaps by cost. Every
// change to a node is noted in one log, and a field catches up with it before it is used, so that placing costs the same
// however much is placed already. Where a cost is expensive to know, a bound on it stands in its place until the node comes to the
// head. For a class that comes once, the engine walks a tree of what is free at most and
// compares the first few nodes that fit.
//
// Rules that count instances (UNIQUE, GROUP_BY, spread, affinity to its own app, ...) divide a field into cells: nodes that
// the rules cannot tell apart. One heap orders the nodes of a cell, another the cells, so that a rule costs one look at a
// counter, not one look at every node.
//
// # Who gets it
//
// PlaceAll hands out what there is in turns: to the role with the least dominant share first, level by level down the tree
// of roles, and within a role by priority. See roles.go and fair.go. Preempt finds whom to end for what is more important,
// and keeps all of the place for it; see preempt.go, and hunt.go for the search.
package engine
