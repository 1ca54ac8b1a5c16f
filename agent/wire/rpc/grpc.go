package rpc

import (
	"fmt"

	"google.golang.org/grpc"
)

// Names on the wire.
const (
	serviceName = "gantry.agent.Wire"
	sessionName = "Session"
	callName    = "Call"
	callKey     = "gantry-call" // metadata of a Call: its number
)

var (
	sessionDesc = grpc.StreamDesc{StreamName: sessionName, ServerStreams: true, ClientStreams: true}
	callDesc    = grpc.StreamDesc{StreamName: callName, ServerStreams: true, ClientStreams: true}
)

// service describes both streams; a Server serves them.
func service() *grpc.ServiceDesc {
	session, call := sessionDesc, callDesc
	session.Handler = func(s any, stream grpc.ServerStream) error { return s.(*Server).serveSession(stream) }
	call.Handler = func(s any, stream grpc.ServerStream) error { return s.(*Server).serveCall(stream) }
	return &grpc.ServiceDesc{ServiceName: serviceName, HandlerType: (*any)(nil), Streams: []grpc.StreamDesc{session, call}}
}

// codec passes messages through: they are bytes already.
type codec struct{}

// Name implements encoding.Codec. It is part of the content type.
func (codec) Name() string { return "gantry" }

// Marshal implements encoding.Codec.
func (codec) Marshal(v any) ([]byte, error) {
	if b, ok := v.(*[]byte); ok {
		return *b, nil
	}
	return nil, fmt.Errorf("a message is %T, not bytes", v)
}

// Unmarshal implements encoding.Codec. The stream never touches data again.
func (codec) Unmarshal(data []byte, v any) error {
	b, ok := v.(*[]byte)
	if !ok {
		return fmt.Errorf("a message is %T, not bytes", v)
	}
	*b = data
	return nil
}

// stream is either end of a stream.
type stream interface {
	SendMsg(m any) error
	RecvMsg(m any) error
}

// message is what can be read from a stream.
type message interface{ decode(b []byte) error }

// send writes a message.
func send(s stream, m interface{ encode() []byte }) error {
	b := m.encode()
	return s.SendMsg(&b)
}

// receive reads a message.
func receive(s stream, m message) error {
	var b []byte
	if err := s.RecvMsg(&b); err != nil {
		return err
	}
	return m.decode(b)
}
