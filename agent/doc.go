// Package agent is a node's hand: it runs what the server assigns to the node, and goes on doing so without one.
//
// Each instance has a pump, a goroutine that takes it one step at a time through its phases (see model.Phase) and
// reports every change. Before a pump acts it writes the instance's record, Dir/instances/ID/instance.json, so that an
// agent that was killed finds out on its next start what it runs: it asks the drivers which tasks they hold, adopts those
// it has a record of, learns how others ended meanwhile, and removes tasks that no record knows. The end of an agent ends no
// task.
//
// Read agent.go for what an Agent is made of, session.go for how it talks with a server, pump.go for the life of one
// instance, attempt.go for how its programs start, stop.go for how they end, task.go for what a driver is told. Health
// checks, artifacts and logs are in packages of their own below this one.
//
// Of disk, only logs are bounded, by rotation; Container.Disk is reserved but a sandbox may outgrow it.
package agent
