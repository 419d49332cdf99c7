//! A program as the way out: its standard input and output are the carrier, as with OpenSSH's `ProxyCommand`.

use std::io;
use std::pin::Pin;
use std::process::Stdio;
use std::task::{Context, Poll};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::{Carried, CarrierKind, DialFailure, HostPort};

/// Starts the program that leads to a host. What it has to say goes where this program's own errors go.
pub(super) fn start(template: &str, to: &HostPort) -> Result<Carried, DialFailure> {
    let failed = |error| DialFailure::Connect(io::Error::new(io::ErrorKind::InvalidInput, error));
    let command = fill(template, to).map_err(failed)?;
    // Of a group of its own: a terminal's Ctrl-C is for this program, which may have calls to finish.
    let mut child = Command::new("/bin/sh")
        .args(["-c", &format!("exec {command}")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(DialFailure::Connect)?;
    let (input, output) = (child.stdin.take(), child.stdout.take());
    let output = output.ok_or_else(|| DialFailure::Connect(io::ErrorKind::BrokenPipe.into()))?;
    Ok(Carried::new(CarrierKind::Stream, Running { input, output, child }, None))
}

/// Puts a host into a command: `%h`, `%p`, and `%%` for a percent sign.
pub(crate) fn fill(template: &str, to: &HostPort) -> Result<String, String> {
    if !is_plain(&to.host) {
        return Err(format!("`{}` is not a host that a command can be given", to.host.escape_debug()));
    }
    expand(template, |token| match token {
        '%' => Some("%".into()),
        'h' => Some(to.host.clone()),
        'p' => Some(to.port.to_string()),
        _ => None,
    })
}

/// Whether a shell takes it as it stands: letters, digits, and what addresses have.
pub(crate) fn is_plain(name: &str) -> bool {
    !name.starts_with('-') && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-:%".contains(c))
}

/// Puts values in place of `%x`, for each `x`.
pub(crate) fn expand(template: &str, value: impl Fn(char) -> Option<String>) -> Result<String, String> {
    let mut filled = String::new();
    let mut rest = template.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            filled.push(c);
            continue;
        }
        let token = rest.next().ok_or("it ends with `%`: write `%%` for a percent sign")?;
        filled.push_str(&value(token).ok_or_else(|| format!("`%{}` has no meaning here", token.escape_debug()))?);
    }
    Ok(filled)
}

/// A program and its two pipes. Dropping it kills the program, and what it has started.
struct Running {
    /// None when there is no more to come.
    input: Option<ChildStdin>,
    output: ChildStdout,
    child: Child,
}

impl Drop for Running {
    fn drop(&mut self) {
        // None when it has ended and was waited for: the number may be another's by now.
        let group = self.child.id().and_then(|id| i32::try_from(id).ok());
        if let Some(group) = group {
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL); // fails if all of it has ended
        }
    }
}

impl AsyncRead for Running {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.output).poll_read(cx, buf)
    }
}

impl Running {
    fn input(&mut self) -> io::Result<Pin<&mut ChildStdin>> {
        self.input.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::BrokenPipe.into())
    }
}

impl AsyncWrite for Running {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.input()?.poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.input()?.poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.input.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.input.as_mut() {
            Some(input) => Pin::new(input).poll_flush(cx),
            None => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Closing the pipe is how a program learns of it.
        self.input = None;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn to(host: &str) -> HostPort {
        HostPort { host: host.into(), port: 2222 }
    }

    #[test]
    fn host_and_port_are_put_in() {
        let filled = fill("nc -x 'a b' %h %p 100%%", &to("hub.example.com"));
        assert_eq!(filled.as_deref(), Ok("nc -x 'a b' hub.example.com 2222 100%"));
        assert_eq!(fill("x [%h]:%p", &to("fe80::1%eth0")).as_deref(), Ok("x [fe80::1%eth0]:2222"));
        for bad in ["x %", "x %r", "x %é"] {
            assert!(fill(bad, &to("hub")).is_err(), "{bad}");
        }
        for bad in ["-oProxyCommand=x", "a;b", "$(a)", "a`b`", "a|b", "a'b", "a\"b", "ä"] {
            assert!(fill("x %h", &to(bad)).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn bytes_go_through_a_program_and_its_end_is_the_end() {
        let mut carried = start("cat", &to("hub")).expect("a program");
        carried.stream.write_all(b"to hub").await.unwrap();
        let mut back = [0; 6];
        carried.stream.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, b"to hub");
        carried.stream.shutdown().await.unwrap();
        assert_eq!(carried.stream.read(&mut back).await.unwrap(), 0);
        assert_eq!(carried.stream.write(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn dropping_it_kills_the_program() {
        let mut carried = start("sh -c 'sleep 1000 & echo $!; wait'", &to("hub")).expect("a program");
        let mut pid = [0; 16];
        let len = carried.stream.read(&mut pid).await.unwrap();
        let process = format!("/proc/{}/stat", String::from_utf8_lossy(&pid[..len]).trim());
        assert!(std::fs::exists(&process).unwrap());
        drop(carried);
        let gone = async {
            // Gone, or dead and not buried yet.
            while std::fs::read_to_string(&process).is_ok_and(|stat| !stat.contains(") Z ")) {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(10), gone).await.expect("it lives on");
    }
}
