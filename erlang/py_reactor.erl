%%% Listeners: servers whose connections are served by Python protocols.
-module(py_reactor).

%% Listeners
-export([start_listener/2, stop_listener/1, child_spec/2]).
-export([suspend_listener/1, resume_listener/1, drain_listener/2]).
-export([listener_info/1, which_listeners/0, get_port/1]).
-export([set_max_connections/2, wait_for_connections/3]).
%% Single connections
-export([send/2, push/2, close/1, monitor/1, demonitor/1]).
%% Seen from outside
-export([metrics/0, start_dashboard/1, stop_dashboard/0]).

-compile({no_auto_import, [monitor/1, demonitor/1]}).

-export_type([listen_reason/0]).

-type listen_reason() ::
    {bad_option, Key :: term()}
    | {already_started, pid()}
    | {protocol, Traceback :: binary()}
    | no_context
    | not_running
    | inet:posix().

%%--------------------------------------------------------------------------------------------------
%% Listeners

%% @doc Starts a listener. `Name' is any term, by which the other functions know it.
%%
%% Its protocol is imported in each of its contexts first; `{protocol, Traceback}' says why that failed.
%% The pid is that of the listener's supervisor.
-spec start_listener(py_reactor_listeners:name(), py_reactor_listener_options:options()) ->
    {ok, pid()} | {error, listen_reason()}.
start_listener(Name, Options) ->
    py_reactor_listeners:start(Name, Options).

%% @doc Stops a listener. Its connections have the time that its option `shutdown' says to end, as in
%% {@link drain_listener/2}; those that are left are closed.
%%
%% `supervised' means that a supervisor of yours runs it, and must stop it.
-spec stop_listener(py_reactor_listeners:name()) -> ok | {error, not_found | supervised}.
stop_listener(Name) ->
    case py_reactor_listeners:find(Name) of
        {ok, Supervisor, _, _} ->
            case py_reactor_listeners:is_child(Supervisor) of
                true -> stop_child(Name, Supervisor);
                false -> {error, supervised}
            end;
        {error, _} ->
            {error, not_found}
    end.

%% It drains before its supervisor is asked, which could do nothing else meanwhile.
stop_child(Name, Supervisor) ->
    case call(Name, fun(Listener) -> py_reactor_listener:drain(Listener, shutdown) end) of
        {ok, _StillOpen} -> py_reactor_listeners:stop(Supervisor);
        {error, not_found} = Error -> Error
    end.

%% @doc A listener under a supervisor of yours. Its `shutdown' is that of the options.
-spec child_spec(py_reactor_listeners:name(), py_reactor_listener_options:options()) ->
    supervisor:child_spec().
child_spec(Name, Options) ->
    #{
        id => {?MODULE, Name},
        start => {py_reactor_listeners, start_listener, [Name, Options]},
        type => supervisor,
        shutdown => infinity
    }.

%% @doc Takes no more connections: what waits in the backlog is accepted, as far as there are places,
%% and the socket is closed, so that new clients are refused. Connections go on.
-spec suspend_listener(py_reactor_listeners:name()) -> ok | {error, not_found | draining}.
suspend_listener(Name) ->
    call(Name, fun py_reactor_listener:suspend/1).

%% @doc Opens a suspended listener again, on the same port.
-spec resume_listener(py_reactor_listeners:name()) ->
    ok | {error, not_found | draining | inet:posix()}.
resume_listener(Name) ->
    call(Name, fun py_reactor_listener:resume/1).

%% @doc Takes no more connections and asks those that are open to end: each protocol's `draining' says
%% how, by default as soon as it is idle. After `DeadlineMs' milliseconds those that are left are closed.
%%
%% Answers how many were still open at the deadline. The listener is then suspended, once the last
%% connection has closed.
-spec drain_listener(py_reactor_listeners:name(), DeadlineMs :: timeout()) ->
    {ok, StillOpen :: non_neg_integer()} | {error, not_found}.
drain_listener(Name, DeadlineMs) when
    DeadlineMs =:= infinity;
    is_integer(DeadlineMs), DeadlineMs >= 0, DeadlineMs =< 16#ffffffff
->
    call(Name, fun(Listener) -> py_reactor_listener:drain(Listener, DeadlineMs) end);
drain_listener(_Name, _DeadlineMs) ->
    error(badarg).

%% @doc What a listener is and does: its options, `status', counters, and the `contexts' that serve it.
%% Asks no process, so that it answers also while a listener is being stopped.
-spec listener_info(py_reactor_listeners:name()) -> #{atom() => term()} | {error, not_found}.
listener_info(Name) ->
    case py_reactor_listeners:find(Name) of
        {ok, Supervisor, Handle, Options} ->
            Contexts = map_get(contexts, Options),
            Known = maps:merge(
                maps:merge(maps:remove(endpoint, Options), counters(Handle)),
                address(py_nif:listener_address(Handle))
            ),
            Known#{
                queue_depth => queue_depth(py_reactor_pool:handles(Contexts)),
                name => Name,
                pid => Supervisor,
                status => status(py_nif:listener_state(Handle)),
                max_connections => py_nif:listener_max_connections(Handle),
                contexts => py_reactor_pool:pids(Contexts)
            };
        {error, _} ->
            {error, not_found}
    end.

%% Without those that only a context can count.
counters(Handle) ->
    maps:without([parked, parkings, wakes], py_nif:listener_stats(Handle)).

queue_depth(Contexts) ->
    lists:sum([map_get(queue_depth, py_nif:context_stats(Context)) || Context <- Contexts]).

status({open, serving}) -> running;
status({closed, serving}) -> suspended;
status({_, _}) -> draining.

address({local, Path}) -> #{local => Path};
address({Ip, Port}) -> #{ip => Ip, port => Port}.

%% @doc The names of all listeners.
-spec which_listeners() -> [py_reactor_listeners:name()].
which_listeners() ->
    py_reactor_listeners:names().

%% @doc The port of a listener, which it keeps while it is suspended; `undefined' for a Unix socket.
-spec get_port(py_reactor_listeners:name()) ->
    inet:port_number() | undefined | {error, not_found}.
get_port(Name) ->
    with_handle(Name, fun(Handle) ->
        case py_nif:listener_address(Handle) of
            {local, _} -> undefined;
            {_, Port} -> Port
        end
    end).

%% @doc Changes how many connections may be open at one time. If that is less than there are, they live
%% on, and no more come until enough have ended.
-spec set_max_connections(py_reactor_listeners:name(), non_neg_integer() | infinity) ->
    ok | {error, not_found}.
set_max_connections(Name, Max) when Max =:= infinity; is_integer(Max), Max >= 0, Max < 1 bsl 63 ->
    with_handle(Name, fun(Handle) -> py_nif:listener_set_max_connections(Handle, Max) end);
set_max_connections(_Name, _Max) ->
    error(badarg).

%% @doc Waits until the number of a listener's connections is as wished. Ends with
%% `{error, not_found}' if the listener does.
-spec wait_for_connections(
    py_reactor_listeners:name(), '>' | '>=' | '==' | '=<' | '<', non_neg_integer()
) -> ok | {error, not_found}.
wait_for_connections(Name, Comparison, Count) when is_integer(Count), Count >= 0, Count < 1 bsl 62 ->
    {From, To} = range(Comparison, Count),
    case py_reactor_listeners:find(Name) of
        {ok, Supervisor, Handle, _} ->
            Monitor = monitor(process, Supervisor),
            Answer = await(Handle, From, To, Monitor),
            true = demonitor(Monitor, [flush]),
            Answer;
        {error, _} ->
            {error, not_found}
    end;
wait_for_connections(_Name, _Comparison, _Count) ->
    error(badarg).

range('>', Count) -> {Count + 1, infinity};
range('>=', Count) -> {Count, infinity};
range('==', Count) -> {Count, Count};
range('=<', Count) -> {0, Count};
range('<', Count) when Count > 0 -> {0, Count - 1};
range(_, _) -> error(badarg).

await(Handle, From, To, Monitor) ->
    Ticket = py_nif:listener_await(Handle, From, To),
    receive
        {Ticket, Seen} when is_integer(Seen) ->
            %% An acceptor takes a place before it accepts, and gives it back when it finds nobody: so
            %% what was seen may have been the number for a moment only.
            case py_nif:listener_stats(Handle) of
                #{active := Active} when Active >= From, Active =< To -> ok;
                _ -> await(Handle, From, To, Monitor)
            end;
        {'DOWN', Monitor, process, _, _} ->
            _ = py_nif:cancel(Ticket),
            {error, not_found}
    end.

with_handle(Name, Use) ->
    case py_reactor_listeners:find(Name) of
        {ok, _, Handle, _} -> Use(Handle);
        {error, _} -> {error, not_found}
    end.

%% Calls the process that leads a listener. If that dies meanwhile the next one is asked.
call(Name, Ask) ->
    case py_reactor_listeners:find(Name) of
        {ok, Supervisor, _, _} ->
            try
                Ask(py_reactor_listener_sup:listener(Supervisor))
            catch
                exit:{_, {gen_server, call, _}} -> call(Name, Ask)
            end;
        {error, _} ->
            {error, not_found}
    end.

%%--------------------------------------------------------------------------------------------------
%% Single connections

%% @equiv py_reactor_connection:send(Connection, Message)
-spec send(py_reactor_connection:connection(), term()) ->
    ok | {error, closed | overload | {bad_message, Explanation :: binary()}}.
send(Connection, Message) -> py_reactor_connection:send(Connection, Message).

%% @equiv py_reactor_connection:push(Connection, Data)
-spec push(py_reactor_connection:connection(), iodata()) ->
    ok | {error, closed | dropped | overload | too_large}.
push(Connection, Data) -> py_reactor_connection:push(Connection, Data).

%% @equiv py_reactor_connection:close(Connection)
-spec close(py_reactor_connection:connection()) -> ok | {error, closed}.
close(Connection) -> py_reactor_connection:close(Connection).

%% @equiv py_reactor_connection:monitor(Connection)
-spec monitor(py_reactor_connection:connection()) -> py_reactor_connection:monitor().
monitor(Connection) -> py_reactor_connection:monitor(Connection).

%% @equiv py_reactor_connection:demonitor(Monitor)
-spec demonitor(py_reactor_connection:monitor()) -> true.
demonitor(Monitor) -> py_reactor_connection:demonitor(Monitor).

%%--------------------------------------------------------------------------------------------------
%% Seen from outside

%% @doc What contexts and listeners count, in the text format of Prometheus.
-spec metrics() -> binary().
metrics() ->
    py_reactor_metrics:metrics().

%% @doc Starts a page with live figures and plots, on the loopback address unless `ip' says otherwise.
-spec start_dashboard(py_reactor_dashboard:options()) ->
    {ok, pid()} | {error, py_reactor_dashboard:reason()}.
start_dashboard(Options) ->
    py_reactor_dashboard:start(Options).

%% @doc Stops that page.
-spec stop_dashboard() -> ok | {error, not_found}.
stop_dashboard() ->
    py_reactor_dashboard:stop().
