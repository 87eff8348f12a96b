%%% One listener: the process that leads it, and its acceptors.
%%%
%%% The listening socket belongs to this supervisor, which opens it before anything else: so neither
%%% the death of the leader nor that of an acceptor closes the port, and nobody waits in the backlog in
%%% vain. When this supervisor dies, however it dies, native code closes the socket and ends the
%%% connections.
-module(py_reactor_listener_sup).

-behaviour(supervisor).

%% API
-export([start_link/4, listener/1]).

%% supervisor callbacks
-export([init/1]).

%% How long the leader may take beyond `shutdown' to close everything.
-define(GRACE_MS, 5000).

%% Between two tries to come back after a death: far fewer a second than the supervisor above puts up
%% with.
-define(RETRY_PAUSE_MS, 100).

%% @doc `WasOpen' is remembered by the supervisor above, and so tells a start from a restart.
-spec start_link(
    py_reactor_listeners:name(),
    py_reactor_listener_options:checked(),
    py_nif:recipe(),
    WasOpen :: atomics:atomics_ref()
) -> {ok, pid()} | {error, py_reactor:listen_reason()}.
start_link(Name, Options, Recipe, WasOpen) ->
    case supervisor:start_link(?MODULE, {Name, Options, Recipe, WasOpen}) of
        {ok, Supervisor} ->
            py_reactor_events:execute([py_reactor, listener, start], #{count => 1}, #{name => Name}),
            {ok, Supervisor};
        {error, {shutdown, {listener, Reason}}} ->
            {error, Reason};
        {error, _} = Error ->
            Error
    end.

%% @doc The process that leads the listener. Found by asking the supervisor, which has it back when one
%% that died was started again.
-spec listener(pid()) -> pid().
listener(Supervisor) ->
    {_, Pid, _, _} = lists:keyfind(py_reactor_listener, 1, supervisor:which_children(Supervisor)),
    Pid.

%% @private
-spec init({
    py_reactor_listeners:name(),
    py_reactor_listener_options:checked(),
    py_nif:recipe(),
    atomics:atomics_ref()
}) -> {ok, {supervisor:sup_flags(), [supervisor:child_spec()]}}.
init({Name, #{num_acceptors := NumAcceptors} = Options, Recipe, WasOpen}) ->
    Text = unicode:characters_to_binary(io_lib:format("~0tp", [Name])),
    Handle = py_nif:listener_new(Text, Recipe, Options),
    case open(Name, Handle, Options) of
        ok ->
            ok = atomics:put(WasOpen, 1, 1);
        {error, Reason} ->
            _ = [timer:sleep(?RETRY_PAUSE_MS) || atomics:get(WasOpen, 1) =:= 1],
            exit({shutdown, {listener, Reason}})
    end,
    Leader = #{
        id => py_reactor_listener,
        start => {py_reactor_listener, start_link, [Name, self(), Handle, Options]},
        shutdown => shutdown_ms(Options),
        restart => transient,
        significant => true
    },
    Acceptors = [acceptor({acceptor, N}, Handle, Options) || N <- lists:seq(1, NumAcceptors)],
    %% Acceptors report to the leader, so they begin again with it. Any of them may be killed again and
    %% again: the socket, which is all that matters, stays open.
    Flags = #{
        strategy => rest_for_one,
        intensity => 100 * (NumAcceptors + 1),
        period => 1,
        auto_shutdown => any_significant
    },
    {ok, {Flags, [Leader | Acceptors]}}.

open(Name, Handle, Options) ->
    case py_reactor_listeners:register(Name) of
        ok ->
            ok = py_nif:listener_own(Handle),
            case py_nif:listener_open(Handle) of
                ok ->
                    py_reactor_listeners:publish(Name, Handle, Options);
                {error, _} = Error ->
                    py_reactor_listeners:unregister(Name, self()),
                    Error
            end;
        {error, _} = Error ->
            Error
    end.

acceptor(Id, Handle, #{contexts := Contexts}) ->
    #{
        id => Id,
        start => {py_reactor_acceptor, start_link, [self(), Handle, Contexts]},
        shutdown => brutal_kill
    }.

shutdown_ms(#{shutdown := infinity}) -> infinity;
shutdown_ms(#{shutdown := brutal_kill}) -> ?GRACE_MS;
shutdown_ms(#{shutdown := Ms}) -> Ms + ?GRACE_MS.
