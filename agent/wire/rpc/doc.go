// Package rpc carries agent/wire over a network: gRPC streams on one mutual TLS connection, which the agent opens.
//
// A Server stands in every server process. It knows an agent by its certificate alone, and hands each session to a fleet
// while this server leads; otherwise it tells the agent who does. A Dialer stands in the agent: it finds the leader among
// the servers it knows, and goes on to another when one fails.
//
// There are two kinds of streams. A Session lasts as long as the connection and carries wire.Up and wire.Down; both sides
// send a beat at least every third of the time after which the other takes them for dead. A Call carries one call of
// wire.Node: the server announces it on the session, the agent opens the stream, and the server sends what it asks.
//
// Messages are in the encoding of protocol buffers, written by hand in messages.go, since what they carry are the plain
// structs of agent/wire. What is not known is skipped, so fields and kinds of messages can be added within a major version
// of the protocol; testdata holds what earlier versions wrote. encode.go is the encoding itself, server.go, limits.go, session.go
// and remote.go are the server's side, dialer.go, link.go and answer.go the agent's.
package rpc
