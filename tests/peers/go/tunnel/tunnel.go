// Package tunnel makes of SSH channels what net and gRPC work with.
package tunnel

import (
	"errors"
	"net"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
)

// Path is where an agent can be dialled back.
const Path = "/grpc-tunnel"

// The channel types and the request that carry a tunnel.
const (
	Private   = "grpc-tunnel"
	Forwarded = "forwarded-streamlocal@openssh.com"
	Forward   = "streamlocal-forward@openssh.com"
)

// ForwardPayload is the payload of a Forward request.
type ForwardPayload struct {
	Path string
}

// ForwardedPayload is the payload of the opening of a Forwarded channel.
type ForwardedPayload struct {
	Path     string
	Reserved string
}

// Conn is a net.Conn over an SSH channel. It has no deadlines: gRPC does without.
type Conn struct {
	ssh.Channel
	Transport ssh.ConnMetadata
}

// NewConn takes a channel that was just opened or accepted, and its requests.
func NewConn(channel ssh.Channel, requests <-chan *ssh.Request, transport ssh.ConnMetadata) *Conn {
	go ssh.DiscardRequests(requests)
	return &Conn{channel, transport}
}

// LocalAddr is that of the SSH connection.
func (c *Conn) LocalAddr() net.Addr { return c.Transport.LocalAddr() }

// RemoteAddr is that of the SSH connection.
func (c *Conn) RemoteAddr() net.Addr { return c.Transport.RemoteAddr() }

// SetDeadline does nothing.
func (c *Conn) SetDeadline(time.Time) error { return nil }

// SetReadDeadline does nothing.
func (c *Conn) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline does nothing.
func (c *Conn) SetWriteDeadline(time.Time) error { return nil }

// Listener is a net.Listener over the channels a peer opens. It rejects those of another type or path.
type Listener struct {
	channels  <-chan ssh.NewChannel
	transport ssh.Conn
	closed    chan struct{}
	close     func()
}

// Listen takes the channels of a connection.
func Listen(transport ssh.Conn, channels <-chan ssh.NewChannel) *Listener {
	closed := make(chan struct{})
	return &Listener{channels, transport, closed, sync.OnceFunc(func() { close(closed) })}
}

// Accept waits for a channel, until the SSH connection or the listener is closed.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		select {
		case <-l.closed:
			return nil, net.ErrClosed
		case offered, ok := <-l.channels:
			if !ok {
				return nil, errors.New("the SSH connection is closed")
			}
			if offered.ChannelType() != Forwarded {
				offered.Reject(ssh.UnknownChannelType, "only "+Forwarded+" is served")
				continue
			}
			var payload ForwardedPayload
			if ssh.Unmarshal(offered.ExtraData(), &payload) != nil || payload.Path != Path {
				offered.Reject(ssh.Prohibited, "only "+Path+" is served")
				continue
			}
			channel, requests, err := offered.Accept()
			if err != nil {
				continue
			}
			return NewConn(channel, requests, l.transport), nil
		}
	}
}

// Close ends Accept.
func (l *Listener) Close() error {
	l.close()
	return nil
}

// Addr is that of the SSH connection.
func (l *Listener) Addr() net.Addr { return l.transport.LocalAddr() }
