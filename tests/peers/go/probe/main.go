// Probe tries what no tunnel needs: it opens channels of every type and sends requests of every kind, as a client of a hub
// or as a server of an agent, and prints what it got for each: "open TYPE: CODE" (RFC 4254 §5.1, or "ok"), "global NAME:
// GRANTED", "request NAME: GRANTED", and "alive" when the connection still works at its end.
package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"dialback.test/peers/tunnel"
)

func main() {
	hub := flag.String("hub", "", "the hub's `address`, to be its client")
	id := flag.String("id", "laptop-1", "the agent `id`")
	key := flag.String("key", "", "the `file` of the agent's private key, in OpenSSH format")
	listen := flag.String("listen", "", "the `address` to be an agent's server on")
	only := flag.String("only", "", "open a channel of this `type`, and do nothing else (as a client)")
	flag.Parse()
	log.SetFlags(0)
	time.AfterFunc(time.Minute, func() { log.Fatal("not done after a minute") })

	var err error
	if *hub != "" {
		single := false
		flag.Visit(func(f *flag.Flag) { single = single || f.Name == "only" })
		err = probeHub(*hub, *id, *key, single, *only)
	} else {
		err = probeAgent(*listen)
	}
	if err != nil {
		log.Fatal(err)
	}
}

func probeHub(hub, id, keyFile string, single bool, only string) error {
	pem, err := os.ReadFile(keyFile)
	if err != nil {
		return err
	}
	signer, err := ssh.ParsePrivateKey(pem)
	if err != nil {
		return err
	}
	tcp, err := net.Dial("tcp", hub)
	if err != nil {
		return err
	}
	conn, channels, requests, err := ssh.NewClientConn(tcp, hub, &ssh.ClientConfig{
		User:            id,
		Auth:            []ssh.AuthMethod{ssh.PublicKeys(signer)},
		HostKeyCallback: ssh.InsecureIgnoreHostKey(),
	})
	if err != nil {
		return err
	}
	go ssh.DiscardRequests(requests)
	go reject(channels)

	if single {
		open(conn, only)
		return nil
	}
	for _, kind := range []string{"session", "x11", "direct-tcpip", "forwarded-tcpip"} {
		open(conn, kind)
	}
	global(conn, "no-such-request@example.com", nil)
	global(conn, "keepalive@openssh.com", nil)
	global(conn, "tcpip-forward", tcpForward())
	if channel := open(conn, directStreamlocal); channel != nil {
		for _, name := range []string{
			"no-such-request@example.com", "exec", "auth-agent-req@openssh.com", "keepalive@openssh.com",
		} {
			request(channel, name)
		}
	}
	return alive(conn)
}

func probeAgent(address string) error {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		return err
	}
	config := &ssh.ServerConfig{
		PublicKeyCallback: func(ssh.ConnMetadata, ssh.PublicKey) (*ssh.Permissions, error) { return nil, nil },
	}
	config.AddHostKey(signer)
	fmt.Println("host-key", strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey()))))
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	fmt.Println("listening", listener.Addr())
	tcp, err := listener.Accept()
	if err != nil {
		return err
	}
	conn, channels, requests, err := ssh.NewServerConn(tcp, config)
	if err != nil {
		return err
	}
	go reject(channels)
	asked := make(chan struct{})
	go func() {
		for request := range requests {
			_ = request.Reply(request.Type == tunnel.Forward, nil)
			if request.Type == tunnel.Forward {
				close(asked)
			}
		}
	}()
	<-asked

	for _, kind := range []string{
		"session", "x11", "auth-agent@openssh.com", "direct-tcpip", "forwarded-tcpip", directStreamlocal,
		"tun@openssh.com", "no-such-type@example.com", "",
	} {
		open(conn, kind)
	}
	global(conn, "no-such-request@example.com", nil)
	global(conn, "tcpip-forward", tcpForward())
	for _, kind := range []string{tunnel.Private, tunnel.Forwarded} {
		if channel := open(conn, kind); channel != nil {
			for _, name := range []string{"no-such-request@example.com", "exec", "auth-agent-req@openssh.com"} {
				request(channel, name)
			}
		}
	}
	return alive(conn)
}

const directStreamlocal = "direct-streamlocal@openssh.com"

// payload is what RFC 4254 or OpenSSH's PROTOCOL prescribes for a channel type.
func payload(kind string) []byte {
	switch kind {
	case "x11":
		return ssh.Marshal(struct {
			Address string
			Port    uint32
		}{"127.0.0.1", 6000})
	case "direct-tcpip", "forwarded-tcpip":
		return ssh.Marshal(struct {
			Host       string
			Port       uint32
			OriginHost string
			OriginPort uint32
		}{"127.0.0.1", 22, "127.0.0.1", 1})
	case tunnel.Forwarded:
		return ssh.Marshal(tunnel.ForwardedPayload{Path: tunnel.Path})
	case directStreamlocal:
		return ssh.Marshal(struct {
			Path     string
			Reserved string
			Port     uint32
		}{tunnel.Path, "", 0})
	case "tun@openssh.com":
		return ssh.Marshal(struct{ Mode, Unit uint32 }{1, 0})
	default:
		return nil
	}
}

func tcpForward() []byte {
	return ssh.Marshal(struct {
		Address string
		Port    uint32
	}{"127.0.0.1", 0})
}

func open(conn ssh.Conn, kind string) ssh.Channel {
	channel, requests, err := conn.OpenChannel(kind, payload(kind))
	var refused *ssh.OpenChannelError
	switch {
	case err == nil:
		go ssh.DiscardRequests(requests)
		fmt.Printf("open %s: ok\n", kind)
		return channel
	case errors.As(err, &refused):
		fmt.Printf("open %s: %d\n", kind, refused.Reason)
	default:
		fmt.Printf("open %s: %v\n", kind, err)
	}
	return nil
}

func global(conn ssh.Conn, name string, payload []byte) {
	granted, _, err := conn.SendRequest(name, true, payload)
	report("global", name, granted, err)
}

func request(channel ssh.Channel, name string) {
	var payload []byte
	if name == "exec" {
		payload = ssh.Marshal(struct{ Command string }{"true"})
	}
	granted, err := channel.SendRequest(name, true, payload)
	report("request", name, granted, err)
}

func report(what, name string, granted bool, err error) {
	if err != nil {
		fmt.Printf("%s %s: %v\n", what, name, err)
		return
	}
	fmt.Printf("%s %s: %v\n", what, name, granted)
}

// alive asks one more thing, and takes any answer.
func alive(conn ssh.Conn) error {
	if _, _, err := conn.SendRequest("keepalive@dialback.test", true, nil); err != nil {
		return fmt.Errorf("the connection is dead: %w", err)
	}
	fmt.Println("alive")
	return nil
}

func reject(channels <-chan ssh.NewChannel) {
	for offered := range channels {
		_ = offered.Reject(ssh.Prohibited, "a probe serves nothing")
	}
}
