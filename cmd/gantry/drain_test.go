package main

import (
	"strings"
	"testing"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
)

// A drain waits until its node is empty, and says what it waits for: whoever turns the machine off next must know.
func TestDrainWaits(t *testing.T) {
	f := newFake(t)
	f.addApp("/web")
	f.looks = []func(*client.Instance){
		func(i *client.Instance) { i.Desired = model.Run },
		func(i *client.Instance) { i.Why = "stays until web-2 has taken over" },
		func(i *client.Instance) { i.Desired = model.Halt },
		func(i *client.Instance) { i.Status.Phase = model.PhaseStopped },
	}
	gantry(t, f, "", "node", "drain", "here").want(t, 0, "here: 1 instance left\n"+
		"here: 1 instance left; web-aaaa: stays until web-2 has taken over\n"+
		"here: 1 instance left; web-aaaa is ending\n"+
		"here is empty; gantry node uncordon here lets it take work again, gantry node remove here takes it out of the cluster\n")
}

// A drain that will not end by itself does not wait for ever.
func TestDrainGetsStuck(t *testing.T) {
	f := newFake(t)
	f.addApp("/db")
	f.looks = []func(*client.Instance){func(i *client.Instance) { i.Slot, i.Desired = 1, model.Run }}
	r := gantry(t, f, "", "node", "drain", "here")
	if r.code != exitRefused || !strings.Contains(r.err, "1 instance with persistent volumes, which stay: db-aaaa") || !strings.Contains(r.err, "--deadline") {
		t.Errorf("code %d: %s", r.code, r.err)
	}
	f.looks = []func(*client.Instance){
		func(i *client.Instance) { i.Why = "stays until noon" },
		func(i *client.Instance) { i.Status.Phase = model.PhaseStopped },
	}
	if r = gantry(t, f, "", "node", "drain", "here", "--deadline", "10m"); r.code != 0 || !strings.Contains(r.out, "1 instance left until ") || !strings.Contains(r.out, "stays until noon") {
		t.Errorf("code %d: %s%s", r.code, r.out, r.err)
	}
	f.looks = []func(*client.Instance){func(i *client.Instance) { i.Status.Phase, i.Slot = model.PhaseRunning, 0 }}
	f.place.node.State = model.NodeUnreachable
	if r = gantry(t, f, "", "node", "drain", "here"); r.code != exitRefused || !strings.Contains(r.err, "does not answer") || !strings.Contains(r.err, "--force") {
		t.Errorf("code %d: %s", r.code, r.err)
	}
}

func TestRemoveNode(t *testing.T) {
	f := newFake(t)
	if r := gantry(t, f, "", "node", "remove", "here"); r.code != exitRefused || !strings.Contains(r.err, "has not ended") || !strings.Contains(r.err, "--force") {
		t.Errorf("code %d: %s", r.code, r.err)
	}
	gantry(t, f, "", "node", "remove", "here", "--force").want(t, 0, "here is removed\n"+
		"1 instance that it ran: given up, and replaced as their apps say\n"+
		"volume /db:1:data was on it; gantry volume rm /db:1:data lets its slot begin elsewhere with an empty one\n")
}

// What is wrong with the cluster as a whole stands above its nodes.
func TestOutageIsShown(t *testing.T) {
	f := newFake(t)
	f.notice = "4 of 10 nodes were lost"
	if r := gantry(t, f, "", "nodes"); !strings.HasPrefix(r.out, f.notice+"\n") {
		t.Errorf("nodes: %s", r.out)
	}
	gantry(t, f, "", "cluster", "resume-replacement").want(t, 0, "instances on lost nodes are replaced again, as their apps say\n")
	if r := gantry(t, f, "", "cluster", "resume-replacement"); r.code != exitRefused {
		t.Errorf("code %d: %s", r.code, r.err)
	}
}
