// Package app decides how many instances of each app exist and which of them should run: it creates what is missing,
// replaces one version by another a few at a time, retires what is too much, and writes down in the app's deployment
// what it does or waits for.
//
// Plan is the whole policy: a pure function of one app's records and the time. Loop feeds it every app that changed, or
// whose deadline has come, and writes its decisions in one transaction if the records are still those it was planned on.
//
// # Counting
//
// An instance is current when what it runs is the same as what the target version runs (AppVersion.Template), else
// old. It is live while it is wanted and not over. It counts as healthy once it has been ready for the target's
// Update.MinHealthyTime.
//
//   - Ceiling: instances that are not over, those that are ending included, never become more than count + surge by a
//     decision. A program that is shutting down still holds its memory and ports, so it counts.
//   - Floor: while old instances are replaced, no healthy one is stopped that would leave fewer healthy than the floor.
//     What is not ready does not count, and old instances of that kind go at once.
//   - An instance that ended for good though it should run, since its node was removed for example, is replaced. One that
//     lasted only moments is replaced after a pause, so that a cause that remains cannot fill the store.
//
// # Slots
//
// Instances of an app with persistent volumes have slots, from 1 to the count, each of which is held by one instance that
// is not over. Whatever ends a holder, its slot is given away once it is over, not when it was asked to end: so replacing
// is always stop first. The lowest free slots are filled, and the highest are given up.
//
// # Evictions
//
// The scheduler evicts instances (model.Eviction); this room decides when they go.
//
//   - Who is preempted stops at once, whatever the floor, and the count asks for another, which waits like any other.
//   - Who is to move, or is drained, gets an heir first (Instance.Replaces), within the ceiling, and stops when the heir
//     does as much as it did and the floor allows. Such a pair counts as one. Where nothing may exist above the count, it
//     stops first, as far as the floor allows.
//   - Old instances go with the deployment that replaces them, and among them the evicted first.
//   - Who has a slot stays: nobody else can have its volumes. Why an evicted instance is still there stands in its Why.
//   - A drain may have a deadline (Snapshot.Drains). Past it who is still there stops whatever the floor, and once nothing else
//     is left on the node those with slots do too; their volumes stay, and so their next instances wait for the node.
//   - When an eviction is withdrawn, the heir goes, unless it does more than the one that it came for.
//
// # Lost nodes
//
// Of an instance whose node does not answer (Status.Away) nobody knows how it is. It does not count as healthy, yet neither
// a deployment nor an eviction stops it: a network that heals must not stop what it hid.
//
//   - After Unreachable.ReplaceAfter it counts no more, also against the ceiling, and another stands in for it
//     (Instance.Replaces). Should it be heard of again, there is one too many: the one that does less goes, else the one that
//     stood in. After ExpungeAfter it is given up: its record is over, and its agent stops it when it hears of that.
//   - Who has a slot is never replaced, unless its app accepts to lose the data (AbandonVolumes). Then it is given up first, and
//     its volumes with it. Removing the node by hand gives up everything that it ran.
//   - While many nodes are lost (Snapshot.Outage) nobody is replaced or given up. When that ends by itself, time counts anew.
//   - A deployment that waits for nothing but lost nodes, or in an outage, does not fail.
//
// # Paused deployments
//
// While a deployment is paused the mix of versions stays as it is: nothing new is created and nothing old is stopped, as
// with a paused deployment in Kubernetes. An instance that is lost, evicted or on a lost node meanwhile is replaced by one of the version
// it had.
// The time spent paused does not count against the deadline.
//
// # Progress
//
// A deployment moves when more of its instances are healthy than ever before, or fewer old ones are left. A restart is
// no progress, and becoming healthy for the second time is none either. Without progress for Update.Deadline, and the
// grace of what is ending, it has failed. It then goes back to App.Stable when that runs something else; but not when
// all of the new version is healthy and only an old instance refuses to end. Removals never fail; they wait.
package app
