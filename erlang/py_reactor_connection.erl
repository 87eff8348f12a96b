%%% Single connections: messages to their protocols, bytes to their peers, and their end.
%%%
%%% Python hands a connection over as `self.connection'. It is an opaque reference, the same one each
%%% time, and may be kept for as long as one likes: when the connection is over it never becomes
%%% another one. It is of use on its own node only.
-module(py_reactor_connection).

%% API
-export([send/2, push/2, close/1, monitor/1, demonitor/1]).

-compile({no_auto_import, [monitor/1, demonitor/1]}).

-export_type([connection/0, monitor/0, down/0]).

-type connection() :: reference().
-type monitor() :: reference().

-type down() :: {'DOWN', monitor(), connection, connection(), Reason :: atom() | {failed, binary()}}.
%% `Reason' is the protocol's `close_reason', or `noproc' if the connection was over already.

%% Reading a larger term takes longer than a scheduler should be held up.
-define(MAX_SMALL_BYTES, 65536).

%% @doc Runs `message_received' on the protocol of a connection. Never waits.
%%
%% `closed': the connection is closing or closed; `overload': its context has thousands of messages to
%% deliver already; `bad_message': the term cannot cross to Python.
-spec send(connection(), term()) ->
    ok | {error, closed | overload | {bad_message, Explanation :: binary()}}.
send(Connection, Message) ->
    case erlang:external_size(Message) =< ?MAX_SMALL_BYTES of
        true -> py_nif:connection_send(Connection, Message);
        false -> py_nif:connection_send_large(Connection, Message)
    end.

%% @doc Sends bytes to the peer of a connection, in one piece, without any Python. Never waits: they
%% go out as soon as the protocol is not in the middle of writing and the kernel takes them.
%%
%% `dropped': the peer is slow, and the policy of the connection has it that this message is lost;
%% `too_large': it is larger than the high-water mark, more than which never waits; `closed': the
%% connection is over, or its peer proved too slow; `overload': as much waits as may, but not because of
%% the peer: the context is busy, or the protocol has paused.
-spec push(connection(), iodata()) -> ok | {error, closed | dropped | overload | too_large}.
push(Connection, Data) ->
    py_nif:connection_push(Connection, Data).

%% @doc Closes a connection once what it has to send is sent, as the action `close' does.
-spec close(connection()) -> ok | {error, closed}.
close(Connection) ->
    py_nif:connection_close(Connection).

%% @doc Has one message of type {@link down()} sent to the caller when the connection is over, at once
%% if it is.
-spec monitor(connection()) -> monitor().
monitor(Connection) ->
    py_nif:connection_monitor(Connection).

%% @doc Takes a monitor back. No message comes from it afterwards, and one that has come already is
%% taken out of the caller's mailbox.
-spec demonitor(monitor()) -> true.
demonitor(Monitor) ->
    case py_nif:connection_demonitor(Monitor) of
        unsent ->
            true;
        sending ->
            erlang:yield(),
            demonitor(Monitor);
        sent ->
            receive
                {'DOWN', Monitor, connection, _, _} -> true
            after 0 -> true
            end
    end.
